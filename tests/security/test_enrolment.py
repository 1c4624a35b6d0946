"""Keys enrolled by one-time tokens and by workloads' tokens: once, in time, by who holds them, as ruled."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from sqlalchemy import text
from starlette.testclient import TestClient

from ledger.core.cose import encode_cbor
from ledger.core.errors import InvalidError
from ledger.core.keys import PrivateKey, generate_key
from ledger.core.statements import Admin
from ledger.service import Settings, create_app
from ledger.service.admin import grant_api_key, withdraw_api_key
from ledger.service.auth_tokens import load_providers
from ledger.store.acts import OwnStatement, acts
from ledger.store.enrolment import invites, new_invite, prove
from ledger.store.log_keys import key_change
from ledger.store.tenancy import bind_issuer, tenant_of_issuer
from tests.build import ORIGIN, Issuer, make_deployment, make_records
from tests.security.conftest import World
from tests.security.test_erasure import check

PROVIDER = "https://tokens.example.com"
AUDIENCE = "tallystick"
JSON = {"Accept": "application/json"}
NAME = "gpu-9.example.com/vllm"


@pytest.fixture(scope="module")
def signing() -> dict[str, Any]:
    return {
        "rsa": rsa.generate_private_key(65537, 2048),
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "ed": Ed25519PrivateKey.generate(),
    }


class Enrolling:
    """A service that trusts one provider, whose keys are in a file."""

    def __init__(self, world: World, folder: Path, signing: dict[str, Any]) -> None:
        self.world, self.signing, self.folder = world, signing, folder
        self.write_keys("rsa", "ec")
        rules = [
            {
                "subject": "ns:{space}:emitter",
                "scopes": ["emit"],
                "tenant": "{space}",
                "enrol": "{space}.example.com/e",
            },
            {"subject": "reader:{name}", "scopes": ["read"], "claims": {"environment": "production"}},
            {"subject": "root", "scopes": ["admin"]},
            {"subject": "nobody"},
        ]
        provider = {
            "issuer": PROVIDER, "audience": AUDIENCE, "algorithms": ["RS256", "ES256"],
            "jwks_file": "keys.json", "rules": rules,
        }  # fmt: skip
        self.file = folder / "identity.json"
        self.file.write_text(json.dumps({"providers": [provider]}))
        settings = Settings(api_key_cache_s=0, identity_file=str(self.file))
        self.client = TestClient(
            create_app(world.store, world.log_key, settings), raise_server_exceptions=False
        )

    def write_keys(self, *names: str, **more: Any) -> None:
        keys = []
        for name in names:
            algorithm = jwt.algorithms.RSAAlgorithm if name == "rsa" else jwt.algorithms.ECAlgorithm
            public = self.signing[name].public_key()
            keys.append(algorithm.to_jwk(public, as_dict=True) | {"kid": name, "use": "sig"} | more)
        (self.folder / "keys.json").write_text(json.dumps({"keys": keys}))

    def token(
        self, subject: str, *, key: str = "rsa", algorithm: str = "RS256", headers: Any = None, **claims: Any
    ) -> str:
        now = int(time.time())
        full = {"iss": PROVIDER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 600} | claims
        full = {name: value for name, value in full.items() if value is not None}
        return jwt.encode(full, self.signing[key], algorithm, {"kid": key} | (headers or {}))

    def get(self, path: str, token: str) -> Any:
        return self.client.get(path, headers=JSON | {"Authorization": f"Bearer {token}"})

    def enrol(self, token: str, key: PrivateKey, issuer: str = NAME, **changes: Any) -> Any:
        body = {
            "token": token,
            "cose_key": encode_cbor(key.public.to_cose_key()).hex(),
            "proof": base64.b64encode(prove(ORIGIN, token, issuer, key)).decode(),
        }
        return self.client.post("/enrolments", json=body | changes, headers=JSON)

    def invite(self, issuer: str = NAME, tenant: str | None = None, valid_s: int = 600) -> str:
        token, _, statement = new_invite(issuer, tenant=tenant, valid_s=valid_s)
        self.world.sequencer.log_own(statement).result(30)
        return token


@pytest.fixture
def enrolling(sqlite_world: World, tmp_path: Path, signing: dict[str, Any]) -> Iterator[Enrolling]:
    made = Enrolling(sqlite_world, tmp_path, signing)
    with made.client:
        yield made


def problem(answer: Any) -> str:
    return str(answer.json()["type"]).removeprefix("/problems/")


# --- invitations -----------------------------------------------------------------------------------------


def test_invited_key_signs(enrolling: Enrolling) -> None:
    token, issuer = enrolling.invite(tenant="a"), Issuer(NAME)
    answer = enrolling.enrol(token, issuer.key)
    assert answer.status_code == 201, answer.content
    assert (answer.json()["issuer"], answer.json()["tenant"]) == (NAME, "a")
    emit = grant_api_key(enrolling.world.sequencer, "x", ["emit"], tenant="a")
    batch = issuer.batch(make_records(1, make_deployment(), first=800, tenant="a"))
    headers = {"Authorization": f"Bearer {emit}", "Content-Type": "application/vnd.tallystick.batch+cbor"}
    assert enrolling.client.post("/batches", content=batch.body, headers=headers).status_code == 201
    with enrolling.world.store.read() as connection:
        (info,) = invites(connection)
        assert tenant_of_issuer(connection, NAME) == "a"
        did = [act.action for act in acts(connection)]
    assert info.used_s is not None
    assert info.kid == issuer.key.public.kid
    assert did[-3:] == ["issuer.invite", "issuer-key.add", "api-key.create"]


def test_token_is_good_once(enrolling: Enrolling) -> None:
    token = enrolling.invite()
    assert enrolling.enrol(token, generate_key()).status_code == 201
    again = enrolling.enrol(token, generate_key())
    assert (again.status_code, problem(again)) == (403, "wrong-invite")


def test_of_two_at_once_one_is_enrolled(enrolling: Enrolling) -> None:
    token, answers = enrolling.invite(), []
    keys = [generate_key() for _ in range(6)]
    threads = [
        threading.Thread(target=lambda key=key: answers.append(enrolling.enrol(token, key))) for key in keys
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [201] + [403] * 5
    assert enrolling.world.scalar(f"SELECT count(*) FROM issuer_key WHERE issuer = '{NAME}'") == 1


def test_wrong_tokens_all_get_the_same_answer(enrolling: Enrolling, monkeypatch: pytest.MonkeyPatch) -> None:
    used, expired, good = enrolling.invite(), enrolling.invite(valid_s=1), enrolling.invite()
    enrolling.enrol(used, generate_key())
    time.sleep(1.1)
    other_secret = good[:-1] + ("a" if good[-1] != "a" else "b")
    unknown = "tsi_000000000000_" + good.rpartition("_")[2]
    answers = [
        enrolling.enrol(token, generate_key())
        for token in (used, expired, other_secret, unknown, "x", "tsk_" + good[4:], good.upper())
    ]
    assert {(answer.status_code, answer.text) for answer in answers} == {(403, answers[0].text)}
    assert problem(answers[0]) == "wrong-invite"
    assert enrolling.enrol(good, generate_key()).status_code == 201


def test_possession_must_be_proven(enrolling: Enrolling) -> None:
    token, key, other = enrolling.invite(), generate_key(), generate_key()

    def proof(*args: Any) -> str:
        return base64.b64encode(prove(*args)).decode()

    wrong = [
        proof(ORIGIN, token, NAME, other),
        proof("other.example.com", token, NAME, key),
        proof(ORIGIN, enrolling.invite(), NAME, key),
        proof(ORIGIN, token, "another.example.com", key),
        "",
        "!!",
        base64.b64encode(b"\xd2\x84").decode(),
        base64.b64encode(
            Issuer(NAME, key).heartbeat().entry
        ).decode(),  # a signature by the key, over another thing
    ]
    for each in wrong:
        answer = enrolling.enrol(token, key, proof=each)
        assert (answer.status_code, problem(answer)) == (422, "bad-proof"), each
    assert enrolling.enrol(token, key).status_code == 201  # none of them used the token up


def test_a_key_that_is_refused_uses_no_token_up(enrolling: Enrolling) -> None:
    token = enrolling.invite()
    taken = enrolling.enrol(token, enrolling.world.issuer.key)
    assert problem(taken) == "key-exists"
    assert enrolling.enrol(token, generate_key()).status_code == 201


def test_nobody_enrols_as_the_log_or_as_anothers_issuer(enrolling: Enrolling) -> None:
    assert problem(enrolling.enrol(enrolling.invite(ORIGIN), generate_key(), ORIGIN)) == "bad-issuer-name"
    enrolling.enrol(enrolling.invite(tenant="a"), generate_key())
    answer = enrolling.enrol(enrolling.invite(tenant="b"), generate_key())
    assert (answer.status_code, problem(answer)) == (403, "other-tenant")


def test_store_has_no_token_and_the_public_log_no_tenant(enrolling: Enrolling) -> None:
    token = enrolling.invite(tenant="very-private")
    with enrolling.world.store.read() as connection:
        rows = [tuple(row) for row in connection.execute(text("SELECT * FROM invite"))]
        entries = [bytes(row[0]) for row in connection.execute(text("SELECT entry FROM statement"))]
    assert token.rpartition("_")[2] not in str(rows)
    assert hashlib.sha256(token.encode()).digest() in rows[0]
    assert not any(b"very-private" in entry for entry in entries)
    for bad in ({"valid_s": 0}, {"valid_s": 10**9}, {"valid_s": 60, "tenant": "a b"}):
        with pytest.raises(InvalidError):
            new_invite(NAME, **bad)


def test_admins_invite_over_http(enrolling: Enrolling) -> None:
    admin = grant_api_key(enrolling.world.sequencer, "x", ["admin"])
    read = grant_api_key(enrolling.world.sequencer, "x", ["read"])
    body = {"issuer": NAME, "tenant": "a", "valid_s": 60}

    def post(token: str) -> Any:
        return enrolling.client.post("/invitations", json=body, headers={"Authorization": f"Bearer {token}"})

    assert post(read).status_code == 403
    made = post(admin).json()
    assert enrolling.enrol(made["token"], generate_key()).status_code == 201
    found = enrolling.client.get("/acts", headers={"Authorization": f"Bearer {admin}"}).json()["acts"]
    invited = next(act for act in found if act["action"] == "issuer.invite")
    assert invited["particulars"]["by"] == admin.split("_")[1]
    assert made["token"] not in str(found)
    added = next(act for act in found if act["action"] == "issuer-key.add" and NAME in str(act))
    assert added["particulars"] | {"kid": ""} == {
        "by": "invited",
        "invite": made["id"],
        "issuer": NAME,
        "tenant": "a",
        "kid": "",
    }


def test_who_added_and_revoked_a_key_is_in_the_trail(enrolling: Enrolling) -> None:
    admin = grant_api_key(enrolling.world.sequencer, "x", ["admin"])
    headers = {"Authorization": f"Bearer {admin}"}
    key = generate_key().public
    body = {"issuer": NAME, "tenant": "a", "public_key_pem": key.to_pem().decode()}
    assert enrolling.client.post("/issuers", json=body, headers=headers).status_code in (200, 201)
    revoked = f"/issuers/{NAME}/keys/{key.kid.hex()}/revoke"
    assert enrolling.client.post(revoked, json={"reason": "lost"}, headers=headers).status_code == 200
    with enrolling.world.store.read() as connection:
        *_, add, revoke = acts(connection)
    by = admin.split("_")[1]
    said = {"by": by, "issuer": NAME, "kid": key.kid.hex()}
    assert (add.action, add.particulars) == ("issuer-key.add", said | {"tenant": "a"})
    assert (revoke.action, revoke.particulars) == ("issuer-key.revoke", said | {"reason": "lost"})
    with enrolling.world.store.read() as connection:
        entries = [bytes(row[0]) for row in connection.execute(text("SELECT entry FROM statement"))]
    assert not any(by.encode() in entry for entry in entries)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("UPDATE issuer_tenant SET tenant = 'b'", "row-differs"),
        ("DELETE FROM issuer_tenant", "row-missing"),
        ("INSERT INTO issuer_tenant VALUES ('tests.example/issuer', 'b')", "row-extra"),
    ],
)
def test_an_issuer_that_is_given_to_another_tenant_shows(
    enrolling: Enrolling, change: str, code: str
) -> None:
    world = enrolling.world
    world.sequencer.add_key(NAME, generate_key().public, tenant="a").result(30)
    world.sequencer.add_key(NAME, generate_key().public, rotate=True).result(30)
    assert check(world).verdict == "sound"
    with world.store.write() as connection:
        connection.execute(text(change))
    report = check(world)
    assert [each.code for each in report.findings] == [code]
    assert "issuer_tenant" in report.findings[0].where
    if code == "row-differs":  # the service believes its table, and the log then says what it says
        world.sequencer.add_key(NAME, generate_key().public, rotate=True, tenant="b").result(30)
        assert [each.code for each in check(world).findings] == [code]


def test_an_invitation_that_somebody_wrote_into_the_database_shows(enrolling: Enrolling) -> None:
    world = enrolling.world
    honest = enrolling.invite()
    assert enrolling.enrol(honest, generate_key()).status_code == 201
    assert not any("invitations" in note for note in check(world).notes)
    token = f"tsi_{'ab' * 6}_{'A' * 43}"
    with world.store.write() as connection:
        connection.execute(
            text("INSERT INTO invite VALUES ('abababababab', :digest, :issuer, NULL, 0, :until, NULL, NULL)"),
            {"digest": hashlib.sha256(token.encode()).digest(), "issuer": NAME, "until": 2**40},
        )
    assert enrolling.enrol(token, generate_key()).status_code == 201
    assert any("no act in the log made: abababababab" in note for note in check(world).notes)


def test_whose_an_issuer_is_cannot_be_told_of_a_log_that_never_said_it(enrolling: Enrolling) -> None:
    world = enrolling.world
    statement = OwnStatement(
        key_change("add", NAME, generate_key().public), deed=lambda c, _: bind_issuer(c, NAME, "a")
    )
    world.sequencer.log_own(statement).result(30)
    report = check(world)
    assert (report.verdict, len(report.findings)) == ("unknown", 0)
    assert [gap.where for gap in report.gaps] == ["issuer_tenant"]


# --- workloads' tokens -----------------------------------------------------------------------------------


def test_workload_calls_for_its_tenant(enrolling: Enrolling) -> None:
    enrolling.world.log_batch(["a", "b"])
    production = enrolling.token("reader:joe", environment="production")
    assert len(enrolling.get("/records", production).json()["records"]) == 2
    assert enrolling.get("/records", enrolling.token("reader:joe", environment="test")).status_code == 401
    assert enrolling.get("/records", enrolling.token("reader:joe")).status_code == 401
    emitter = enrolling.token("ns:a:emitter", key="ec", algorithm="ES256")
    assert enrolling.get("/records", emitter).status_code == 403
    assert enrolling.get("/issuers/nobody/keys", emitter).status_code == 404
    assert enrolling.get("/acts", enrolling.token("root")).status_code == 200


def test_workload_enrols_the_key_that_its_rule_names(enrolling: Enrolling) -> None:
    token = enrolling.token("ns:a:emitter")
    assert problem(enrolling.enrol(token, generate_key(), "b.example.com/e")) == "bad-proof"
    answer = enrolling.enrol(token, generate_key(), "a.example.com/e")
    assert answer.status_code == 201, answer.content
    assert answer.json()["tenant"] == "a"
    replayed = enrolling.enrol(token, generate_key(), "a.example.com/e")
    assert problem(replayed) == "wrong-invite"
    fresh = enrolling.token("ns:a:emitter", jti="2")
    assert enrolling.enrol(fresh, generate_key(), "a.example.com/e").status_code == 201
    for other in (enrolling.token("reader:x", environment="production"), enrolling.token("root")):
        assert problem(enrolling.enrol(other, generate_key(), NAME)) == "wrong-invite"


def _unsigned(token: str, **header: Any) -> str:
    _, payload, _ = token.split(".")
    head = base64.urlsafe_b64encode(json.dumps({"kid": "rsa"} | header).encode()).rstrip(b"=").decode()
    return f"{head}.{payload}."


def _hmac_with_public_key(enrolling: Enrolling, token: str) -> str:
    """Algorithm confusion: HS256 with the public key's bytes, which everybody knows, as its secret."""
    pem = enrolling.signing["rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = _unsigned(token, alg="HS256").rstrip(".")
    signature = hmac.new(pem, body.encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


WRONG: dict[str, Callable[[Enrolling], str]] = {
    "alg none": lambda e: _unsigned(e.token("root"), alg="none"),
    "alg None": lambda e: _unsigned(e.token("root"), alg="nOnE"),
    "no alg": lambda e: _unsigned(e.token("root")),
    "hmac with the public key": lambda e: _hmac_with_public_key(e, e.token("root")),
    "algorithm not in the file": lambda e: e.token("root", algorithm="PS256"),
    "signed by another key": lambda e: e.token("root", key="ec", algorithm="ES256", headers={"kid": "rsa"}),
    "key that is not in the set": lambda e: e.token("root", headers={"kid": "other"}),
    "key of another family": lambda e: e.token("root", key="ed", algorithm="EdDSA"),
    "brings its own key": lambda e: e.token("root", headers={"jwk": {"kty": "RSA"}}),
    "names an address for keys": lambda e: e.token("root", headers={"jku": "https://evil.example.com/"}),
    "critical extension": lambda e: e.token("root", headers={"crit": ["x"], "x": 1}),
    "expired": lambda e: e.token("root", exp=int(time.time()) - 120),
    "not yet valid": lambda e: e.token("root", nbf=int(time.time()) + 3600),
    "issued in the future": lambda e: e.token("root", iat=int(time.time()) + 3600),
    "lives too long": lambda e: e.token("root", exp=int(time.time()) + 30 * 86_400),
    "without end": lambda e: e.token("root", exp=None),
    "without time of issue": lambda e: e.token("root", iat=None),
    "for somebody else": lambda e: e.token("root", aud="other"),
    "for nobody": lambda e: e.token("root", aud=None),
    "by somebody else": lambda e: e.token("root", iss="https://evil.example.com"),
    "without subject": lambda e: e.token("root", sub=None),
    "unknown subject": lambda e: e.token("roots"),
    "subject with something before": lambda e: e.token("x:ns:a:emitter"),
    "tenant that cannot be": lambda e: e.token("ns:~:emitter"),
    "subject over a border": lambda e: e.token("ns:a:b:emitter"),
    "newline after": lambda e: e.token("root\n"),
    "rule without rights": lambda e: e.token("nobody"),
    "cut": lambda e: e.token("root")[:-10],
    "payload changed": lambda e: ".".join(
        (e.token("nobody").split(".")[0], e.token("root").split(".")[1], e.token("nobody").split(".")[2])
    ),
    "nested deep": lambda e: "e30." + base64.urlsafe_b64encode(b"[" * 4000).decode().rstrip("=") + ".e30",
    "very long": lambda e: e.token("root", padding="x" * 9000),
    "only dots": lambda e: "a.b.c",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tokens(enrolling: Enrolling, name: str) -> None:
    token = WRONG[name](enrolling)
    answer = enrolling.get("/acts", token)
    assert (answer.status_code, problem(answer)) == (401, "wrong-key")
    assert problem(enrolling.enrol(token[:8000], generate_key(), "a.example.com/e")) == "wrong-invite"


def test_rotated_and_withdrawn_keys(enrolling: Enrolling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.service.auth_tokens._REFETCH_S", 0.0)
    monkeypatch.setattr("ledger.service.auth_tokens._KEYS_TTL_S", 0.0)
    old, new = enrolling.token("root"), enrolling.token("root", key="ec", algorithm="ES256")
    assert enrolling.get("/acts", old).status_code == 200
    enrolling.write_keys("ec")
    assert enrolling.get("/acts", old).status_code == 401
    assert enrolling.get("/acts", new).status_code == 200
    enrolling.write_keys("ec", use="enc")
    assert enrolling.get("/acts", new).status_code == 401
    enrolling.write_keys("ec", alg="ES384")
    assert enrolling.get("/acts", new).status_code == 401
    (enrolling.folder / "keys.json").write_text("{")
    assert enrolling.get("/acts", new).status_code == 401


def test_withdrawn_api_key(enrolling: Enrolling) -> None:
    token = grant_api_key(enrolling.world.sequencer, "x", ["read"])
    assert enrolling.get("/records", token).status_code == 200
    withdraw_api_key(enrolling.world.sequencer, token.split("_")[1])
    assert enrolling.get("/records", token).status_code == 401
    with pytest.raises(InvalidError):
        withdraw_api_key(enrolling.world.sequencer, "nope")


@pytest.mark.parametrize(
    "change",
    [
        {"algorithms": ["HS256"]}, {"algorithms": ["none"]}, {"algorithms": []}, {"rules": []},
        {"jwks_file": None}, {"jwks_url": "https://x.example.com/"}, {"surprise": 1},
        {"rules": [{"subject": "a", "tenant": "{space}"}]},
        {"rules": [{"subject": "{s}", "tenant": "{s}", "scopes": ["admin"]}]},
    ],
)  # fmt: skip
def test_files_of_providers_that_cannot_be(enrolling: Enrolling, change: dict[str, Any]) -> None:
    provider = json.loads(enrolling.file.read_text())["providers"][0] | change
    provider = {name: value for name, value in provider.items() if value is not None}
    enrolling.file.write_text(json.dumps({"providers": [provider]}))
    with pytest.raises(InvalidError) as caught:
        load_providers(enrolling.file)
    assert caught.value.code == "bad-identity-file"


def test_key_sets_are_fetched_from_no_internal_host(enrolling: Enrolling) -> None:
    provider = json.loads(enrolling.file.read_text())["providers"][0]
    del provider["jwks_file"]
    for url in ("http://169.254.169.254/keys", "https://localhost/keys", "https://127.0.0.1/"):
        enrolling.file.write_text(json.dumps({"providers": [provider | {"jwks_url": url}]}))
        with pytest.raises(Exception, match=r"not allowed|plain http"):
            create_app(
                enrolling.world.store, enrolling.world.log_key, Settings(identity_file=str(enrolling.file))
            )


def test_issuers_make_no_acts(enrolling: Enrolling) -> None:
    world = enrolling.world
    emit = grant_api_key(world.sequencer, "x", ["emit"])
    act = Admin(action="api-key.create", detail="ab" * 32, **world.issuer.chain())
    headers = JSON | {"Authorization": f"Bearer {emit}", "Content-Type": "application/cose"}
    answer = enrolling.client.post("/entries", content=world.issuer.sign(act).entry, headers=headers)
    assert problem(answer) == "kind-not-allowed"


def test_private_key_never_travels(enrolling: Enrolling) -> None:
    key = generate_key()
    raw = key.raw.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    assert raw not in prove(ORIGIN, "tsi_x", NAME, key)
