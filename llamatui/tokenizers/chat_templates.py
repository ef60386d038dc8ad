"""Jinja chat templates: which of our chat formats one writes, and one for each of our formats.

Templates are programs, and those of unknown models are not run here. A format is recognised by its markers:
all of its own must be there, as it writes them, and none of another format.
"""

import re
from dataclasses import dataclass
from itertools import islice

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
    """Name of the chat format that a template writes, "" if it is none of ours."""
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
_MOST_SYSTEMS = 8  # a template has one or two; each costs a scan of all that is before it
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def default_system(template: str) -> str:
    """The system message that a ChatML template adds where a conversation has none of its own.

    It is found as a whole message in a literal, in a branch for conversations that start without a system
    message; "" if there is no such thing. SmolLM2's and Qwen 2.5's templates have one.
    """
    if format_of(template) != "chatml":
        return ""
    for match in islice(_SYSTEM.finditer(template), _MOST_SYSTEMS):
        if any(map(_lacks_system, _branches(template, match.start()))):
            return re.sub(
                r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), match[2], flags=re.DOTALL
            )
    return ""


def _branches(template: str, end: int) -> list[list[str]]:
    """Of each `if` that is open at `end`: the conditions of its branches so far, "" for `else`."""
    stack: list[list[str]] = []
    for tag in _TAG.finditer(template, 0, end):
        kind, condition = tag[1], tag[2].strip()
        if kind == "if":
            stack.append([condition])
        elif stack and kind == "endif":
            stack.pop()
        elif stack:
            stack[-1].append(condition)
    return stack


def _lacks_system(conditions: list[str]) -> bool:
    """Whether the last branch is for conversations that do not start with a system message."""
    *refused, taken = conditions
    return ("system" in taken and bool(re.search(r"!=|\bnot\b", taken))) or (
        not taken and len(refused) == 1 and bool(re.search(r"==\s*['\"]system['\"]", refused[0]))
    )


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
