from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ledger.core import note
from ledger.core.errors import CorruptError, InvalidError, TallystickError
from ledger.core.note import Note, NoteSignature, VerifierKey

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "signed_note.json").read_text())
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(3)]
VKEYS = [
    VerifierKey.of(f"example.com/{i}", note.ED25519, key.public_key().public_bytes_raw())
    for i, key in enumerate(KEYS)
]
TEXT = "A text\n\nwith an empty line.\n"
SIGNATURES = tuple(
    note.sign_ed25519_note(TEXT, vkey.name, key) for vkey, key in zip(VKEYS, KEYS, strict=True)
)
DATA = note.format_note(Note(TEXT, SIGNATURES))

texts = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]) | st.just("\n"), max_size=60)
names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1).filter(
    lambda name: "+" not in name
)


@pytest.mark.parametrize("vector", VECTORS["notes"], ids=lambda v: v["name"])
def test_published_notes_verify(vector):
    keys = [note.parse_vkey(vkey) for vkey in vector["vkeys"]]
    parsed = note.parse_note(vector["note"].encode())
    assert note.verify_note(parsed, keys) == parsed.signatures
    assert note.format_note(parsed) == vector["note"].encode()
    assert [note.format_vkey(key) for key in keys] == vector["vkeys"]


def test_published_signature_is_made_again():
    vector = VECTORS["signing"]
    seed = base64.b64decode(vector["skey"].split("+", 4)[4])[1:]
    signature = note.sign_ed25519_note(
        vector["text"], vector["name"], Ed25519PrivateKey.from_private_bytes(seed)
    )
    line = base64.b64encode(signature.key_id + signature.signature).decode()
    assert line == vector["signature"]


@given(texts, st.lists(st.tuples(names, st.binary(min_size=5, max_size=80)), min_size=1, max_size=5))
def test_notes_round_trip(text, signatures):
    made = Note(text + "\n", tuple(NoteSignature(name, raw[:4], raw[4:]) for name, raw in signatures))
    assert note.parse_note(note.format_note(made)) == made


def test_the_last_empty_line_separates():
    text = f"text\n\n\u2014 {VKEYS[0].name} AAAAAAA=\n"
    made = Note(text, (note.sign_ed25519_note(text, VKEYS[0].name, KEYS[0]),))
    parsed = note.parse_note(note.format_note(made))
    assert parsed.text == text
    assert len(note.verify_note(parsed, VKEYS)) == 1


LINE = "\u2014 example.com/0 AAAAAAA="


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"text\n",
        b"text\n\n",
        f"text\n{LINE}\n".encode(),
        f"\n{LINE}\n".encode(),
        f"text\n\n{LINE}".encode(),
        f"text\n\n{LINE}\n\n".encode(),
        f"text\n\n{LINE}\n{LINE}".encode(),
        f"text\n\n{LINE}\nsomething else\n".encode(),
        f"text\n\n{LINE} \n".encode(),
        f"text\n\n {LINE}\n".encode(),
        f"text\n\n{LINE.replace(' ', '  ')}\n".encode(),
        f"text\n\n{LINE.replace(' ', chr(0xA0))}\n".encode(),
        f"text\n\n{LINE.replace(chr(0x2014), '-')}\n".encode(),
        f"text\n\n{LINE.replace('/', '+')}\n".encode(),
        f"text\n\n{LINE.replace('/', chr(0x2003))}\n".encode(),
        f"text\n\n{LINE.replace('/', chr(0x85))}\n".encode(),
        f"text\n\n{LINE.replace('example.com/0', '')}\n".encode(),
        f"text\n\n{LINE.replace('AAAAAAA=', 'AAAAAAB=')}\n".encode(),  # stray bits before the padding
        f"text\n\n{LINE.replace('AAAAAAA=', 'AAAAAAA')}\n".encode(),
        f"text\n\n{LINE.replace('AAAAAAA=', 'AAAAAAA==')}\n".encode(),
        f"text\n\n{LINE.replace('AAAAAAA=', 'AAAA-_A=')}\n".encode(),
        f"text\n\n{LINE.replace('AAAAAAA=', 'AAAAAA==')}\n".encode(),  # four bytes: a key ID, no signature
        f"text\n\n{LINE.replace('AAAAAAA=', 'AAAA')}\n".encode(),
        f"te\txt\n\n{LINE}\n".encode(),
        f"te\0xt\n\n{LINE}\n".encode(),
        f"text\r\n\n{LINE}\n".encode(),
        f"text\n\n{LINE}\r\n".encode(),
        f"te\xffxt\n\n{LINE}\n".encode("latin-1", "replace"),
        b"te\xed\xa0\x80xt\n\n" + f"{LINE}\n".encode(),
        f"text\n\n{LINE}\n".encode("utf-16"),
    ],
)
def test_malformed_notes_are_refused(data):
    with pytest.raises(InvalidError):
        note.parse_note(data)


def test_a_well_formed_note_is_the_control_of_the_malformed_ones():
    assert note.parse_note(f"text\n\n{LINE}\n".encode()).signatures[0].signature == b"\0"


def test_limits():
    many = f"text\n\n{LINE}\n".encode() + f"{LINE}\n".encode() * 63
    assert len(note.parse_note(many).signatures) == 64
    with pytest.raises(InvalidError, match="65 signatures"):
        note.parse_note(many + f"{LINE}\n".encode())
    with pytest.raises(InvalidError, match="more than 10"):
        note.parse_note(DATA, max_bytes=10)


@pytest.mark.parametrize("text", ["", "no newline", "a\tb\n", "a\x00\n", "\ud800\n"])
def test_what_cannot_be_a_text_is_not_signed(text):
    with pytest.raises(InvalidError):
        note.sign_ed25519_note(text, "example.com", KEYS[0])
    with pytest.raises(InvalidError):
        note.format_note(Note(text, SIGNATURES))


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b", "a\x07b", "\udc80"])
def test_what_cannot_name_a_key_is_refused(name):
    with pytest.raises(InvalidError):
        note.sign_ed25519_note(TEXT, name, KEYS[0])
    with pytest.raises(InvalidError):
        VerifierKey.of(name, note.ED25519, bytes(32))
    with pytest.raises(InvalidError):
        NoteSignature(name, bytes(4), bytes(64))


def test_a_note_without_signatures_is_not_formatted():
    with pytest.raises(InvalidError, match="no signature"):
        note.format_note(Note(TEXT, ()))


def test_known_keys_are_verified_and_unknown_ones_ignored():
    parsed = note.parse_note(DATA)
    assert note.verify_note(parsed, VKEYS) == SIGNATURES
    assert note.verify_note(parsed, VKEYS[1:2]) == SIGNATURES[1:2]
    other = VerifierKey.of(VKEYS[0].name, note.ED25519, KEYS[1].public_key().public_bytes_raw())
    assert note.verify_note(parsed, [other, VKEYS[2]]) == SIGNATURES[2:]
    for none in ([], [other]):
        with pytest.raises(CorruptError, match="No known key"):
            note.verify_note(parsed, none)


def test_one_wrong_signature_by_a_known_key_condemns_the_note():
    wrong = NoteSignature(VKEYS[1].name, VKEYS[1].key_id, SIGNATURES[0].signature)
    for signatures in ((SIGNATURES[0], wrong), (wrong, SIGNATURES[0]), (SIGNATURES[1], wrong)):
        with pytest.raises(CorruptError, match=r"example\.com/1"):
            note.verify_note(Note(TEXT, signatures), VKEYS)
    assert note.verify_note(Note(TEXT, (SIGNATURES[0], wrong)), VKEYS[:1]) == SIGNATURES[:1]


def test_a_repeated_signature_counts_once():
    assert note.verify_note(Note(TEXT, SIGNATURES[:1] * 3), VKEYS) == SIGNATURES[:1]


def test_a_signature_of_another_length_does_not_verify():
    for signature in (SIGNATURES[0].signature[:-1], SIGNATURES[0].signature + b"\0"):
        wrong = NoteSignature(VKEYS[0].name, VKEYS[0].key_id, signature)
        with pytest.raises(CorruptError):
            note.verify_note(Note(TEXT, (wrong,)), VKEYS)


def test_cosignature_keys_do_not_verify_notes():
    key = VerifierKey.of("w", note.COSIGNATURE_ED25519, bytes(32))
    with pytest.raises(InvalidError, match="cosigns checkpoints"):
        note.verify_note(note.parse_note(DATA), [*VKEYS, key])


def test_every_flipped_bit_is_noticed():
    for position in range(len(DATA)):
        for bit in range(8):
            changed = bytearray(DATA)
            changed[position] ^= 1 << bit
            try:
                parsed = note.parse_note(bytes(changed))
                verified = note.verify_note(parsed, VKEYS)
            except TallystickError:
                continue
            # Only a name or key ID may change: the line is then by an unknown key, and counts for nothing.
            assert parsed.text == TEXT
            assert len(verified) == len(SIGNATURES) - 1


@given(names, st.sampled_from([(1, 32), (4, 32), (6, 1312)]), st.data())
def test_vkeys_round_trip(name, kind, data):
    sig_type, size = kind
    key = VerifierKey.of(name, sig_type, data.draw(st.binary(min_size=size, max_size=size)))
    assert note.parse_vkey(note.format_vkey(key)) == key


def test_every_flipped_bit_of_a_vkey_is_noticed():
    data = note.format_vkey(VKEYS[0]).encode()
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(InvalidError):
                note.parse_vkey(changed.decode("latin-1"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/foo",
        "example.com/foo+530d903a",
        "example.com/foo+530d903a+",
        "example.com/foo+530D903A+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+0530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+530d903b+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/fop+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
        "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k\n",
        "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3Q==",
        "rekor.sigstore.dev+12345678+AwEB",
    ],
)
def test_malformed_vkeys_are_refused(text):
    with pytest.raises(InvalidError):
        note.parse_vkey(text)


def test_a_key_of_unknown_type_or_wrong_size_is_refused():
    for sig_type, size in ((2, 32), (1, 31), (1, 33), (4, 1312), (6, 32)):
        with pytest.raises(InvalidError):
            VerifierKey.of("example.com", sig_type, bytes(size))
