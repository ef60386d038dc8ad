"""The app's keys: every binding by its id, what config.toml makes of them, and how a key is written.

Bindings stand in the classes that act on them. An id is "group.action": a room's own group is its name, "app"
holds in every room, and the others belong to a dialog or a widget.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module

from textual.binding import Binding, InvalidBinding
from textual.dom import DOMNode
from textual.keys import Keys

from llamatui.app.tui import __name__ as package
from llamatui.app.tui import __path__ as folder
from llamatui.errors import UsageError

EVERYWHERE = "app"
ROOMS = ("story", "chat")
MODIFIERS = {"ctrl", "alt", "shift", "super", "meta", "hyper"}
SHOWN = {
    "escape": "Esc", "enter": "Enter", "space": "Space", "tab": "Tab", "backspace": "Backspace",
    "delete": "Del", "up": "↑", "down": "↓", "left": "←", "right": "→", "pageup": "PgUp", "pagedown": "PgDn",
    "home": "Home", "end": "End", "minus": "-", "plus": "+", "question_mark": "?", "slash": "/", "comma": ",",
    "full_stop": ".", "left_square_bracket": "[", "right_square_bracket": "]", "less_than_sign": "<",
    "greater_than_sign": ">",
}  # fmt: skip


def names_of(keys: str) -> list[str]:
    """Textual's names of keys that are written with commas: `?` is `question_mark`.

    Raises:
        InvalidBinding: One of them is empty.
    """
    return [binding.key for binding in Binding.make_bindings([Binding(keys, "")])]


def _named() -> set[str]:
    """Every key but the characters that are no ASCII, whose names are themselves."""
    ascii_keys = {name for code in range(33, 127) if code != ord(",") for name in names_of(chr(code))}
    return {"comma"} | ascii_keys | {key.value for key in Keys if not key.value.startswith("<")}


def own_bindings(kind: type) -> list[Binding]:
    """Those of ours that a class declares itself, one for each of its keys."""
    if not kind.__module__.startswith(package):
        return []
    return [binding for binding in Binding.make_bindings(kind.__dict__.get("BINDINGS", ())) if binding.id]


@cache
def all_bindings() -> tuple[Binding, ...]:
    """Every binding of the app, as the classes have it. Imports all of the app: for who rebinds a key."""
    import pkgutil  # for this alone, and the first paint should not wait for it

    found: list[Binding] = []
    for module in pkgutil.iter_modules(folder):
        for kind in vars(import_module(f"{package}.{module.name}")).values():
            if isinstance(kind, type) and issubclass(kind, DOMNode):
                found += own_bindings(kind)
    return tuple(dict.fromkeys(found))


def keymap_from(keys: Mapping[str, str]) -> dict[str, str]:
    """What Textual is to be told so that these bindings (ids) have these keys (one, or some with commas).

    Raises:
        UsageError: There is no such id or key, or the key is taken where it would be used.
    """
    if not keys:
        return {}
    bindings = all_bindings()
    known = sorted({binding.id for binding in bindings if binding.id})
    mapped = {}
    for name, text in keys.items():
        if name not in known:
            raise UsageError(f"keys: there is no binding {name!r}", f"known are: {', '.join(known)}")
        mapped[name] = ",".join(_checked(name, text))
    _check_clashes(bindings, mapped)
    # Textual forgets whatever else was on the keys that a rebound binding had: it is told that those stay.
    left = {(_group(b.id), b.key) for b in bindings if b.id in mapped}
    beside = {b.id for b in bindings if b.id not in mapped and (_group(b.id), b.key) in left}
    stay = {name: ",".join(b.key for b in bindings if b.id == name) for name in beside if name}
    return {**stay, **mapped}


def rebound(bindings: Iterable[Binding], keymap: Mapping[str, str]) -> list[Binding]:
    """The bindings with the keys that they have after `keymap`."""
    found: list[Binding] = []
    for binding in bindings:
        if text := keymap.get(binding.id or ""):
            found += [replace(binding, key=key, key_display=None) for key in text.split(",")]
        else:
            found.append(binding)
    return list(dict.fromkeys(found))


def key_of(node: DOMNode, name: str, *, typing: bool = False) -> str:
    """How the key of a binding is written, which the node has, or something that it is in.

    `typing`: one that is no letter, if there is one.
    """
    kinds = dict.fromkeys(kind for one in node.ancestors_with_self for kind in type(one).__mro__)
    own = [binding for kind in kinds for binding in own_bindings(kind) if binding.id == name]
    keys = [show_key(binding) for binding in rebound(own, node.app._keymap)]
    return next((key for key in keys if len(key) > 1), keys[0]) if typing else keys[0]


def show_key(binding: Binding) -> str:
    """`ctrl+r` as `Ctrl+R`."""
    *modifiers, key = binding.key.split("+")
    shown = SHOWN.get(key) or (key.upper() if modifiers or key[1:].isdigit() else key)
    return "+".join([*(modifier.capitalize() for modifier in modifiers), shown])


def _group(name: str | None) -> str:
    return (name or "").partition(".")[0]


def _checked(name: str, text: str) -> list[str]:
    try:
        keys = names_of(text)
    except InvalidBinding:
        keys = [""]
    named = _named()
    for key in keys:
        *modifiers, last = key.split("+")
        if (last not in named and len(last) != 1) or not set(modifiers) <= MODIFIERS:
            raise UsageError(
                f"keys: {name}: there is no key {key!r}",
                'keys are written like "r", "f5", "ctrl+y", "shift+up" or "question_mark"; some, with commas',
            )
    return keys


def _check_clashes(bindings: Iterable[Binding], mapped: Mapping[str, str]) -> None:
    """A key may do two things only where it always did: one of them is then possible at a time."""
    before: dict[str | None, set[str]] = {}
    for binding in bindings:
        before.setdefault(binding.id, set()).add(binding.key)
    after = rebound(bindings, mapped)
    for mine in [binding for binding in after if binding.id in mapped]:
        for other in after:
            if (
                other.key == mine.key
                and other.id != mine.id
                and _meet(mine.id, other.id)
                and not before[mine.id] & before[other.id]
            ):
                raise UsageError(
                    f"keys: {mine.id}: {mine.key!r} is taken by {other.id} ({other.description})",
                    f"choose another key, or give {other.id} another one too",
                )


def _meet(one: str | None, other: str | None) -> bool:
    """Whether both may be waiting for a key at the same time."""
    a, b = _group(one), _group(other)
    return a == b or (EVERYWHERE in (a, b) and bool({a, b} & set(ROOMS)))
