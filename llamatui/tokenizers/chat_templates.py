"""Jinja chat templates: which of our chat formats one writes, and one for each of our formats.

Templates are programs, and those of unknown models are not run here. A format is recognised by its markers:
all of its own must be there, as it writes them, and none of another format.
"""

import re
from dataclasses import dataclass

UNKNOWN_FORMAT = "unknown"
"""Stands in a model's header for a template that is none of ours: never guessed in silence."""

MAX_TEMPLATE = 1 << 16
"""Characters. Templates have some thousands; what is longer is not worth the time that it takes."""

_GLUE = r"""['"\s+~{}-]*?"""
"""What stands between two pieces of text in a template: quotes, `+`, `~`, braces."""
_NEWLINE = r"(?:\\n|\n)"
_CONTENT = r"\s*[+~]\s*(?:\w+\[['\"]content['\"]\]|[\w.]*content)(?:\.strip\(\)|\s*\|\s*trim)?\s*[+~]\s*"


@dataclass(frozen=True, slots=True)
class _Markers:
    patterns: tuple[str, ...]
    """Each must be found."""
    tokens: frozenset[str]
    """No other texts like `<|name|>` may be there: they belong to another format."""


_FORMATS = {
    "llama3": _Markers(
        (
            r"<\|start_header_id\|>",
            rf"<\|end_header_id\|>{_GLUE}{_NEWLINE}{_NEWLINE}",
            r"<\|eot_id\|>",
        ),
        frozenset(
            ("begin_of_text", "start_header_id", "end_header_id", "eot_id", "eom_id", "python_tag", "image")
        ),
    ),
    "chatml": _Markers(
        (r"<\|im_start\|>", rf"<\|im_end\|>{_GLUE}{_NEWLINE}"),
        frozenset(("im_start", "im_end", "endoftext")),
    ),
    "llama2": _Markers(
        (r"\[INST\] ", r" \[/INST\]", rf"<<SYS>>{_NEWLINE}", rf"{_NEWLINE}<</SYS>>{_NEWLINE}{_NEWLINE}"),
        frozenset(),
    ),
    # Others have the same names and end a user's turn in another way: Phi-3 by `<|end|>`, Tulu by nothing.
    "zephyr": _Markers(
        tuple(
            rf"<\|{role}\|>{_NEWLINE}['\"]{_CONTENT}(?:eos_token|['\"]</s>)"
            for role in ("system", "user", "assistant")
        ),
        frozenset(("system", "user", "assistant")),
    ),
}

_TOKEN = re.compile(r"<[|｜]([^|｜<>\s]{1,40})[|｜]>")
_FOREIGN = re.compile(
    r"<(?:start|end)_of_turn>|\[(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\]"
    r"|### ?(?:Instruction|User)|USER:"
)
_INST = re.compile(r"\[/?INST\]")


def format_of(template: str) -> str:
    """Name of the chat format that a template writes, "" if it is none of ours, or too long."""
    if len(template) > MAX_TEMPLATE:
        return ""
    tokens = set(_TOKEN.findall(template))
    if _FOREIGN.search(template) or "｜" in template:
        return ""
    for name, markers in _FORMATS.items():
        if (
            tokens <= markers.tokens
            and all(re.search(pattern, template) for pattern in markers.patterns)
            and (name == "llama2") == bool(_INST.search(template))
        ):
            return name
    return ""


_TAG = re.compile(r"\{%-?\s*(if|elif|else|endif)\b((?:(?!\{%|-?%\}).)*)-?%\}", re.DOTALL)
_SYSTEM = re.compile(
    r"""(['"])<\|im_start\|>system(?:\\n|\n)((?:\\.|(?!\1|<\|im_end\|>|\\).)+)<\|im_end\|>""", re.DOTALL
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def default_system(template: str) -> str:
    """The system message that a ChatML template adds where a conversation has none of its own.

    It is found as a whole message in a literal, in a branch for conversations that start without a system
    message; "" if there is no such thing. SmolLM2's and Qwen 2.5's templates have one.
    """
    if format_of(template) != "chatml":
        return ""
    messages = _SYSTEM.finditer(template)
    message = next(messages, None)
    open_ifs: list[_If] = []
    n_lacking = 0
    for tag in [*_TAG.finditer(template), None]:
        while message and (tag is None or message.start() < tag.end()):
            if n_lacking:
                return re.sub(
                    r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), message[2], flags=re.DOTALL
                )
            message = next(messages, None)
        if tag and tag[1] == "if":
            open_ifs.append(_If(tag[2]))
            n_lacking += open_ifs[-1].lacks_system
        elif tag and open_ifs:
            n_lacking -= open_ifs[-1].lacks_system
            if tag[1] == "endif":
                open_ifs.pop()
            else:
                open_ifs[-1].enter(tag[2].strip())
                n_lacking += open_ifs[-1].lacks_system
    return ""


class _If:
    """An `if` of a template, at one of its branches."""

    def __init__(self, condition: str) -> None:
        self._first = condition
        self._n_branches = 1
        self.lacks_system = _refuses_system(condition)
        """Whether the branch is for conversations that do not start with a system message."""

    def enter(self, condition: str) -> None:
        """The next branch, "" for `else`."""
        is_second = self._n_branches == 1
        self._n_branches += 1
        self.lacks_system = _refuses_system(condition) or (
            not condition and is_second and bool(re.search(r"==\s*['\"]system['\"]", self._first))
        )


def _refuses_system(condition: str) -> bool:
    return "system" in condition and bool(re.search(r"!=|\bnot\b", condition))


def template_text(value: object) -> str:
    """The template in the `chat_template` of a tokenizer_config.json: text, or a list of named templates.

    "" if there is none, or none called "default".
    """
    if isinstance(value, list):
        named = (item for item in value if isinstance(item, dict) and item.get("name") == "default")
        value = next((item.get("template") for item in named), None)
    return value if isinstance(value, str) else ""


_TEMPLATES = {
    "llama3": (
        "<|begin_of_text|>{% for message in messages %}"
        r"{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
        " + '<|eot_id|>' }}{% endfor %}"
        r"{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        r"{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
        r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama2": (
        "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
        r"{% set ns.system = ns.system + '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' %}"
        "{% elif message['role'] == 'user' %}"
        "{{ '<s>[INST] ' + (ns.system + message['content']) | trim + ' [/INST]' }}{% set ns.system = '' %}"
        "{% else %}{{ ' ' + message['content'] | trim + ' </s>' }}{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for message in messages %}"
        r"{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '</s>\n' }}"
        r"{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '</s>\n' }}"
        r"{% else %}{{ '<|assistant|>\n' + message['content'] + '</s>\n' }}{% endif %}{% endfor %}"
        r"{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}


def template_for(name: str, bos: str) -> str:
    """A template that renders what our format of that name does, "" if there is none.

    Args:
        bos: Text of the token in front of conversations in formats that leave it to the vocabulary.
    """
    template = _TEMPLATES.get(name, "")
    return bos + template if name in ("chatml", "zephyr") else template
