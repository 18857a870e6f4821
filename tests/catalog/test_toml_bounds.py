"""What is too dear to parse is refused before the parser sees it, and nothing that an operator writes is."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.catalog import declaration, toml_bounds
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.catalog.toml_bounds import DEPTH_MAX, KEY_PARTS_MAX, check_toml
from tollkeeper.errors import BadInput, BodyTooLarge, Malformed

ATTACKS = {
    "a dotted key": "a" + ".a" * 100_000 + " = 1",
    "one with white space": "a" + " . a" * 100_000 + " = 1",
    "one of quoted parts": '"a"' + '."a"' * 100_000 + " = 1",
    "one of literal parts": "'a'" + ".'a'" * 100_000 + " = 1",
    "the name of a table": "[" + "a." * 100_000 + "a]",
    "that of an array of tables": "[[" + "a." * 100_000 + "a]]",
    "a key in an inline table": "a = {b = 1, " + "a." * 100_000 + "a = 1}",
    "a key after an entry": '[[accounts]]\nid = "a"\nmetadata.' + "a." * 100_000 + "a = 1",
    "arrays": "a = " + "[" * 100_000,
    "inline tables": "a = " + "{a = " * 100_000,
    "both": "a = " + "[{a = " * 50_000,
}


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS.keys())
def test_what_the_parser_would_choke_on_does_not_reach_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of 100,000 parts takes it more than 24 GB."""
    monkeypatch.setattr(declaration.tomllib, "loads", lambda text: pytest.fail("parsed"))
    with pytest.raises(Malformed):
        parse_declaration(text)


@pytest.mark.parametrize(
    "text", ["a = [" + "1," * 2_000 + "]", "[[a]]\n" * 500, '"a"\n' * 1_000, "#\n" * 1_000]
)
def test_the_pieces_of_a_file_are_bounded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toml_bounds, "TOKENS_MAX", 1_000)
    monkeypatch.setattr(declaration.tomllib, "loads", lambda text: pytest.fail("parsed"))
    with pytest.raises(BodyTooLarge):
        parse_declaration(text)


def test_the_characters_of_a_file_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line reads a file of any size."""
    monkeypatch.setattr(toml_bounds, "CHARS_MAX", 100)
    with pytest.raises(BodyTooLarge):
        parse_declaration("#" * 101)


MANY = "." * 50 + "[" * 50 + "{" * 50
"""More dots and brackets than a file may have where they count."""


@pytest.mark.parametrize(
    "text",
    [
        f"# {MANY} \" ' \n a = 1",
        f'a = "{MANY}"',
        f"a = '{MANY}'",
        f'"{MANY}" = 1',
        f'a = "\\" {MANY} \\\\"',
        f'a = """{MANY}\n"" {MANY} \\""" {MANY}"""',
        f"a = '''{MANY}\n'' {MANY}'''",
        f'a = """{MANY}"""""',
        'a = "https://a.b.c.d.e.f.g.h.i.j.k.l.m/n.o.p?q=r.s"',
        "a = 1.5e3\nb = 2026-01-01T00:00:00.125Z\nc = [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5]",
        ".".join("abcdefgh"[:KEY_PARTS_MAX]) + " = 1",
        "a = " + "[" * DEPTH_MAX + "]" * DEPTH_MAX,
        "a = [\n" + '  {name = "a.b", window = "1m"},\n' * 300 + "]",
        "[[plans]]\n" * 300,
        "",
    ],
)
def test_what_an_operator_writes_passes(text: str) -> None:
    tomllib.loads(text)
    check_toml(text)


@given(
    st.lists(
        st.sampled_from(["a", ".", '"', "'", '"""', "'''", "\\", "\n", "#", "=", " ", "[", "]", "1"]),
        max_size=30,
    )
)
def test_what_the_parser_reads_has_keys_of_few_parts(pieces: list[str]) -> None:
    """Whatever quotes and comments there are: a text that passes and is TOML has no key over the bound."""
    text = "".join(pieces)
    try:
        check_toml(text)
        tables = tomllib.loads(text)
    except (BadInput, tomllib.TOMLDecodeError):
        return
    assert _depth(tables) <= KEY_PARTS_MAX + DEPTH_MAX + KEY_PARTS_MAX


def test_a_long_key_behind_any_valid_text_is_found() -> None:
    """The scan and the parser agree on where strings and comments end."""
    for before in (
        'a = "x\\"y"',
        'a = """x"y""z\\""""""',
        "a = '''x'y''z'''''",
        "a = 'x\\'",
        "# it's",
        '"a.\'b" = 1',
    ):
        tomllib.loads(before)
        with pytest.raises(Malformed):
            check_toml(before + "\n" + "k." * KEY_PARTS_MAX + "k = 1")


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
