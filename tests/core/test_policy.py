"""Trust policies: the specification's example, each rule of its text, and checkpoints judged by them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.checkpoint import Checkpoint
from ledger.core.cosignature import cosign
from ledger.core.errors import CorruptError, InvalidError, TallystickError
from ledger.core.keys import generate_key
from ledger.core.log_keys import log_verifier_key, parse_log_keys, sign_tree_head
from ledger.core.note import Note, format_note, format_vkey, parse_note
from ledger.core.policy import check_witnessed, cosigned_by, parse_policy
from ledger.witness.cosigning import witness_verifier_key

ORIGIN = "log.example.com/a"
LOG, NEW = generate_key(), generate_key("ml-dsa-44")
WITNESSES = {name: generate_key(kind) for name, kind in (
    ("X1", "ed25519"), ("X2", "ml-dsa-44"), ("X3", "ed25519"), ("Y1", "ml-dsa-44"), ("Y2", "ed25519"),
    ("Y3", "ed25519"),
)}  # fmt: skip
TREE = Checkpoint(ORIGIN, 12, b"\7" * 32)


def vkey(name: str) -> str:
    return format_vkey(witness_verifier_key(f"{name.lower()}.example/w", WITNESSES[name].public))


LOG_LINE = f"log {format_vkey(log_verifier_key(ORIGIN, LOG.public))}\n"
EXAMPLE = (
    LOG_LINE
    + "\n"
    + "".join(f"witness {name} {vkey(name)}\n" for name in ("X1", "X2", "X3"))
    + "group X-witnesses 2 X1 X2 X3\n\n"
    + "".join(f"\twitness  {name} {vkey(name)} https://{name}.example/ \n" for name in ("Y1", "Y2", "Y3"))
    + "group Y-witnesses any Y1 Y2 Y3\n# both organizations\n  # and a comment\n"
    "group X-and-Y all X-witnesses Y-witnesses\nquorum X-and-Y\n"
)


def cosigned(*names: str, tree: Checkpoint = TREE, keys: tuple = (LOG,)) -> bytes:
    note = parse_note(sign_tree_head(tree, keys, 1_700_000_000))
    lines = tuple(cosign(note.text, f"{n.lower()}.example/w", WITNESSES[n], 1_700_000_001) for n in names)
    return format_note(Note(note.text, note.signatures + lines))


def test_the_specifications_example() -> None:
    policy = parse_policy(EXAMPLE.encode())
    assert [log.key.name for log in policy.logs] == [ORIGIN]
    assert [(w.name, w.url) for w in policy.witnesses][2:4] == [("X3", None), ("Y1", "https://Y1.example/")]
    assert policy.satisfied_by({"X1", "X3", "Y2"})
    assert not policy.satisfied_by({"X1", "X2", "X3"})
    assert not policy.satisfied_by({"X1", "Y1", "Y2", "Y3"})


@pytest.mark.parametrize("names", [("X1", "X2", "Y1"), ("X2", "X3", "Y3"), tuple(WITNESSES)])
def test_a_quorum_is_enough(names: tuple[str, ...]) -> None:
    checkpoint, witnessed = check_witnessed(cosigned(*names), parse_policy(EXAMPLE.encode()))
    assert checkpoint == TREE
    assert witnessed == dict.fromkeys(names, 1_700_000_001)


@pytest.mark.parametrize("names", [(), ("X1", "X2"), ("Y1", "Y2", "Y3"), ("X1", "Y1")])
def test_less_than_a_quorum_is_not(names: tuple[str, ...]) -> None:
    with pytest.raises(CorruptError) as caught:
        check_witnessed(cosigned(*names), parse_policy(EXAMPLE.encode()))
    assert caught.value.code == "quorum-missed"


def test_a_cosignature_twice_counts_once() -> None:
    policy = parse_policy(EXAMPLE.encode())
    assert set(cosigned_by(parse_note(cosigned("X1", "X1", "Y1")), policy)) == {"X1", "Y1"}


def test_no_witness_need_be_asked_for() -> None:
    policy = parse_policy(f"{LOG_LINE}quorum none\n".encode())
    assert check_witnessed(cosigned(), policy) == (TREE, {})


def test_a_log_that_the_policy_does_not_name_is_refused() -> None:
    other = Checkpoint("log.example.com/b", 12, b"\7" * 32)
    with pytest.raises(CorruptError, match="names no such log"):
        check_witnessed(cosigned(tree=other), parse_policy(f"{LOG_LINE}quorum none\n".encode()))


def test_a_changed_cosignature_is_no_missing_one() -> None:
    note = parse_note(cosigned("X1", "X2", "Y1"))
    last = note.signatures[-1]
    broken = type(last)(last.name, last.key_id, last.signature[:-1] + bytes([last.signature[-1] ^ 1]))
    with pytest.raises(CorruptError, match="does not verify"):
        check_witnessed(
            format_note(Note(note.text, (*note.signatures[:-1], broken))), parse_policy(EXAMPLE.encode())
        )


def test_each_key_of_a_rotating_log_opens_its_checkpoints() -> None:
    lines = "".join(f"log {format_vkey(log_verifier_key(ORIGIN, key.public))}\n" for key in (LOG, NEW))
    policy = parse_policy(f"{lines}quorum none\n".encode())
    for keys in ((LOG,), (NEW,), (LOG, NEW)):
        assert check_witnessed(cosigned(keys=keys), policy)[0] == TREE
    with pytest.raises(CorruptError):
        check_witnessed(cosigned(keys=(NEW,)), parse_policy(f"{LOG_LINE}quorum none\n".encode()))


W1 = f"witness a {vkey('X1')}\n"
W2 = f"witness b {vkey('X2')}\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no quorum"),
        (LOG_LINE, "no quorum"),
        ("quorum none\nquorum none\n", "twice"),
        ("quorum a\n", "not defined"),
        (f"quorum a\n{W1}", "not defined"),
        ("quorum none", "newline"),
        ("quorum none\r\n", "control"),
        (f"{LOG_LINE}{LOG_LINE}quorum none\n", "public key"),
        (f"log {vkey('X1')}\nquorum none\n", "not of a log"),
        (f"witness a {format_vkey(log_verifier_key(ORIGIN, LOG.public))}\nquorum none\n", "no cosignatures"),
        (f"{W1}{W1.replace(' a ', ' b ')}quorum none\n", "public key"),
        (f"{W1}{W2.replace(' b ', ' a ')}quorum a\n", "taken"),
        (f"{W1.replace(' a ', ' none ')}quorum none\n", "taken"),
        (f"{W1}group a any a\nquorum a\n", "taken"),
        (f"{W1}group g any a none\nquorum g\n", "not defined"),
        (f"{W1}group g any g\nquorum g\n", "not defined"),
        (f"{W1}{W2}group g 0 a b\nquorum g\n", "threshold"),
        (f"{W1}{W2}group g 3 a b\nquorum g\n", "threshold"),
        (f"{W1}{W2}group g 01 a b\nquorum g\n", "threshold"),
        (f"{W1}{W2}group g most a b\nquorum g\n", "threshold"),
        (f"{W1}group g any a a\nquorum g\n", "member already"),
        (f"{W1}group g any a\ngroup h any a\nquorum h\n", "member already"),
        (f"{W1}group g any\nquorum g\n", "no line"),
        (f"{W1}quorum a b\n", "no line"),
        ("witnes a b\nquorum none\n", "no line"),
        ("witness a b\nquorum none\n", "not of the form"),
        ("quorum\u00a0none\n", "no line"),
    ],
    ids=lambda each: each[:9],  # not the keys, which are new in each process
)
def test_what_the_specification_forbids(text: str, why: str) -> None:
    with pytest.raises(InvalidError, match=why) as caught:
        parse_policy(text.encode())
    assert caught.value.code == "bad-policy"


def test_names_are_bytes() -> None:
    kelvin = f"witness \u212a {vkey('X1')}\nwitness K {vkey('X2')}\nquorum \u212a\n"
    policy = parse_policy(kelvin.encode())
    assert policy.satisfied_by({policy.witnesses[0].name})
    assert not policy.satisfied_by({"K"})


def test_thirty_two_of_each_are_read() -> None:
    keys = [generate_key() for _ in range(32)]
    lines = [
        f"witness w{n} {format_vkey(witness_verifier_key('w.example', k.public))}" for n, k in enumerate(keys)
    ]
    lines += [f"log {format_vkey(log_verifier_key(f'l{n}.example', k.public))}" for n, k in enumerate(keys)]
    lines += [f"group g{n} any w{n}" for n in range(32)]
    policy = parse_policy("\n".join([*lines, "quorum g31", ""]).encode())
    assert (len(policy.witnesses), len(policy.logs), len(policy.groups)) == (32, 32, 32)


@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    words = st.sampled_from(
        ["log", "witness", "group", "quorum", "none", "any", "2", "a", "b", vkey("X1"), vkey("X2")]
    )
    line = st.lists(words | st.text(max_size=5), max_size=6).map(" ".join)
    text = data.draw(st.lists(line, max_size=8).map("\n".join)) + "\n"
    try:
        policy = parse_policy(text.encode())
    except TallystickError as error:
        assert error.code == "bad-policy"  # noqa: PT017
    else:
        assert policy.satisfied_by({w.name for w in policy.witnesses})


def test_log_keys_of_one_log_are_read_together() -> None:
    keys = tuple(log_verifier_key(ORIGIN, key.public) for key in (LOG, NEW))
    assert parse_log_keys("\n".join(map(format_vkey, keys)) + "\n") == keys
    for wrong in ("", vkey("X1"), f"{format_vkey(keys[0])} {format_vkey(log_verifier_key('b', NEW.public))}"):
        with pytest.raises(InvalidError):
            parse_log_keys(wrong)
