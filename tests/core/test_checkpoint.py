from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tlog_scales.signing import PlainEd25519Signer
from tlog_scales.tlog import Checkpoint as TheirCheckpoint

from ledger.core import merkle, note
from ledger.core.checkpoint import (
    Checkpoint,
    format_checkpoint_text,
    open_checkpoint,
    parse_checkpoint_text,
    sign_checkpoint,
)
from ledger.core.errors import CorruptError, InvalidError, TallystickError

VECTORS = Path(__file__).parent.parent / "vectors"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORIGIN = "example.com/log"
LOG_KEY = note.VerifierKey.of(ORIGIN, note.ED25519, KEY.public_key().public_bytes_raw())
ROOT = merkle.leaf_hash(b"leaf")

lines = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), min_size=1, max_size=40)


def test_the_text_of_the_specification():
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    checkpoint = parse_checkpoint_text(text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20_852_163)
    assert checkpoint.root.hex() == "0ac5186a91863e8e1d90c808014aa89bf5da8e3ee1d9f07630f0378f68f1ab62"
    assert format_checkpoint_text(checkpoint) == text


def test_a_tree_head_whose_signer_is_not_its_origin():
    vector = json.loads((VECTORS / "signed_note.json").read_text())["notes"][2]
    data, key = vector["note"].encode(), note.parse_vkey(vector["vkeys"][0])
    assert parse_checkpoint_text(note.parse_note(data).text).size == 6_476_701
    with pytest.raises(CorruptError, match=r"go\.sum database tree"):
        open_checkpoint(data, key)


@given(lines, st.integers(1, 2**63 - 1), st.binary(min_size=32, max_size=32), st.lists(lines, max_size=3))
def test_texts_round_trip(origin, size, root, extensions):
    checkpoint = Checkpoint(origin, size, root, tuple(extensions))
    assert parse_checkpoint_text(format_checkpoint_text(checkpoint)) == checkpoint


@pytest.mark.parametrize("size", [0, 1, 2**63 - 1])
def test_signed_checkpoints_open(size):
    checkpoint = Checkpoint(ORIGIN, size, ROOT if size else merkle.EMPTY_ROOT, ("an extension",))
    assert open_checkpoint(sign_checkpoint(checkpoint, KEY), LOG_KEY) == checkpoint


def test_an_independent_signer_writes_the_same_bytes():
    theirs = TheirCheckpoint.make_signed(ORIGIN, 7, ROOT, [PlainEd25519Signer(ORIGIN, KEY)])
    assert sign_checkpoint(Checkpoint(ORIGIN, 7, ROOT), KEY) == theirs.serialize().encode()


def root_line(root):
    return format_checkpoint_text(Checkpoint("o", 1, root)).split("\n")[2]


GOOD_ROOT = root_line(ROOT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "o\n1\n",
        f"o\n1\n{GOOD_ROOT}",
        f"\n1\n{GOOD_ROOT}\n",
        f"o\n\n{GOOD_ROOT}\n",
        f"o\n01\n{GOOD_ROOT}\n",
        f"o\n+1\n{GOOD_ROOT}\n",
        f"o\n-1\n{GOOD_ROOT}\n",
        f"o\n 1\n{GOOD_ROOT}\n",
        f"o\n1_0\n{GOOD_ROOT}\n",
        f"o\n١\n{GOOD_ROOT}\n",
        f"o\n{2**63}\n{GOOD_ROOT}\n",
        f"o\n{'9' * 5000}\n{GOOD_ROOT}\n",
        f"o\n0\n{GOOD_ROOT}\n",
        f"o\n1\n{GOOD_ROOT[:-1]}\n",
        f"o\n1\n{GOOD_ROOT} \n",
        "o\n1\nAAAA\n",
        f"o\n1\n{GOOD_ROOT}\n\n",
        f"o\n1\n{GOOD_ROOT}\n\nextension\n",
        f"o\n1\n{GOOD_ROOT}\next\tension\n",
        f"o\r\n1\n{GOOD_ROOT}\n",
    ],
)
def test_malformed_texts_are_refused(text):
    with pytest.raises(InvalidError):
        parse_checkpoint_text(text)


def test_the_control_of_the_malformed_texts():
    assert parse_checkpoint_text(f"o\n1\n{GOOD_ROOT}\nextension\n") == Checkpoint(
        "o", 1, ROOT, ("extension",)
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("", 1, ROOT),
        ("a\nb", 1, ROOT),
        (ORIGIN, -1, ROOT),
        (ORIGIN, 2**63, ROOT),
        (ORIGIN, 1, ROOT[:-1]),
        (ORIGIN, 0, ROOT),
        (ORIGIN, 1, ROOT, ("",)),
        (ORIGIN, 1, ROOT, ("a\nb",)),
        ("\ud800", 1, ROOT),
    ],
)
def test_what_is_no_checkpoint_cannot_be_made(arguments):
    with pytest.raises(InvalidError):
        Checkpoint(*arguments)


def test_an_origin_that_cannot_name_a_key_is_not_signed():
    with pytest.raises(InvalidError, match="cannot name a key"):
        sign_checkpoint(Checkpoint("an origin", 1, ROOT), KEY)


def test_another_logs_key_does_not_open():
    data = sign_checkpoint(Checkpoint(ORIGIN, 1, ROOT), KEY)
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    key = note.VerifierKey.of(ORIGIN, note.ED25519, other.public_key().public_bytes_raw())
    with pytest.raises(CorruptError):
        open_checkpoint(data, key)


def test_a_signed_note_that_is_no_checkpoint_does_not_open():
    text = "hello\n"
    data = note.format_note(note.Note(text, (note.sign_ed25519_note(text, ORIGIN, KEY),)))
    with pytest.raises(InvalidError, match="three lines"):
        open_checkpoint(data, LOG_KEY)


def test_every_flipped_bit_is_noticed():
    data = sign_checkpoint(Checkpoint(ORIGIN, 12_345, ROOT, ("extension",)), KEY)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(TallystickError):
                open_checkpoint(bytes(changed), LOG_KEY)
