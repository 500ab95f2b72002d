"""/v3/credentials and the EC2 keys under a user. Blobs are stored encrypted."""

import hashlib
import hmac
import json
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput, Conflict, Unauthorized
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import store
from cumulet.services.identity.api import views
from cumulet.services.identity.api.support import collection, enforce, found, service_of
from cumulet.services.identity.api.tokens import token_view
from cumulet.services.identity.authn import resolve
from cumulet.services.identity.schema import CredentialChange, NewCredential, NewEc2Credential, extra_of
from cumulet.services.identity.store import CredentialRow
from cumulet.services.identity.tokens import token_payload


def _opened(call: Call, row: CredentialRow) -> str:
    return service_of(call).credential_keys.open(row.blob).decode()


def _view(call: Call, row: CredentialRow) -> dict[str, Any]:
    return views.credential(call, row, _opened(call, row))


def _target(row: CredentialRow | None) -> dict[str, Any]:
    return {} if row is None else {"id": row.id, "user_id": row.user_id, "project_id": row.project_id}


def _load(call: Call, rule: str) -> CredentialRow:
    id = call.params["credential_id"]
    row = service_of(call).db.read(lambda tx: store.credentials.get(tx, id))
    enforce(call, rule, credential=_target(row))
    return found(row, "credential", id)


def ec2_id(access: str) -> str:
    """EC2 credentials are found by their access key, so their id is made from it."""
    return hashlib.sha256(access.encode()).hexdigest()


def list_credentials(call: Call) -> dict[str, Any]:
    """Everybody may list; one sees those one may get."""
    equal = {name: call.query.get(name) for name in ("user_id", "type") if name in call.query}
    rows = service_of(call).db.read(lambda tx: store.credentials.list(tx, **equal))
    admin = call.allowed("identity:list_credentials")
    if not admin:
        rows = [row for row in rows if row.user_id == call.ctx.user_id]
    return collection(call, "credentials", [_view(call, row) for row in rows])


def create_credential(call: Call) -> dict[str, Any]:
    new: NewCredential = call.body
    enforce(call, "identity:create_credential", credential={"user_id": new.user_id, "project_id": new.project_id})
    id = new_hex()
    if new.type == "ec2":
        id = ec2_id(_ec2_blob(new.blob)["access"])
        if new.project_id is None:
            raise BadInput("An EC2 credential needs a project_id.")
    service = service_of(call)
    sealed = service.credential_keys.seal(new.blob.encode())

    def work(tx: Tx) -> CredentialRow:
        store.lock(tx)
        if store.credentials.get(tx, id) is not None:
            raise Conflict("There is a credential with this access key already.")
        extra = extra_of(call.document, NewCredential)
        return store.credentials.add(tx, CredentialRow(id, new.user_id, new.project_id, new.type, sealed, extra))

    return {"credential": _view(call, service.db.write(work))}


def _ec2_blob(blob: str) -> dict[str, str]:
    try:
        content = json.loads(blob)
    except ValueError:
        raise BadInput("The blob of an EC2 credential is JSON.") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), str) for key in ("access", "secret")):
        raise BadInput("The blob of an EC2 credential holds access and secret.")
    return content


def get_credential(call: Call) -> dict[str, Any]:
    return {"credential": _view(call, _load(call, "identity:get_credential"))}


def update_credential(call: Call) -> dict[str, Any]:
    old = _load(call, "identity:update_credential")
    change: CredentialChange = call.body
    owner = old.user_id if change.user_id is UNSET else change.user_id
    enforce(call, "identity:update_credential", credential={"user_id": owner})
    service = service_of(call)
    kind = old.type if change.type is UNSET else change.type
    project_id = old.project_id if change.project_id is UNSET else change.project_id
    if kind == "ec2":
        _ec2_blob(_opened(call, old) if change.blob is UNSET else change.blob)
        if project_id is None:
            raise BadInput("An EC2 credential needs a project_id.")
    sealed = None if change.blob is UNSET else service.credential_keys.seal(change.blob.encode())

    def work(tx: Tx) -> CredentialRow:
        store.lock(tx)
        row = found(store.credentials.get(tx, old.id), "credential", old.id)
        row.blob = sealed or row.blob
        if change.type is not UNSET:
            row.type = change.type
        if change.user_id is not UNSET:
            row.user_id = change.user_id
        if change.project_id is not UNSET:
            row.project_id = change.project_id
        row.extra = {**row.extra, **extra_of(call.document, CredentialChange)}
        return store.credentials.save(tx, row)

    return {"credential": _view(call, service.db.write(work))}


def delete_credential(call: Call) -> None:
    row = _load(call, "identity:delete_credential")
    service_of(call).db.write(lambda tx: store.credentials.remove(tx, row.id))


# -- EC2 ---------------------------------------------------------------------------------------------------------


def _ec2_view(call: Call, row: CredentialRow) -> dict[str, Any]:
    content = json.loads(_opened(call, row))
    return {
        "user_id": row.user_id,
        "tenant_id": row.project_id,
        "access": content["access"],
        "secret": content["secret"],
        "trust_id": None,
        "links": {"self": f"{call.url_base}/users/{row.user_id}/credentials/OS-EC2/{content['access']}"},
    }


def list_ec2(call: Call) -> dict[str, Any]:
    user_id = call.params["user_id"]
    enforce(call, "identity:ec2_list_credentials", credential={"user_id": user_id})

    def work(tx: Tx) -> list[CredentialRow]:
        found(store.users.get(tx, user_id), "user", user_id)
        return store.credentials.list(tx, user_id=user_id, type="ec2")

    rows = service_of(call).db.read(work)
    return collection(call, "credentials", [_ec2_view(call, row) for row in rows])


def create_ec2(call: Call) -> dict[str, Any]:
    user_id, new = call.params["user_id"], call.body
    enforce(call, "identity:ec2_create_credential", credential={"user_id": user_id})
    access, secret = new_hex(), new_hex()
    service = service_of(call)
    content = {"access": access, "secret": secret, "trust_id": None}
    sealed = service.credential_keys.seal(json.dumps(content).encode())

    def work(tx: Tx) -> CredentialRow:
        store.lock(tx)
        found(store.users.get(tx, user_id), "user", user_id)
        found(store.projects.get(tx, new.tenant_id), "project", new.tenant_id)
        return store.credentials.add(tx, CredentialRow(ec2_id(access), user_id, new.tenant_id, "ec2", sealed, {}))

    return {"credential": _ec2_view(call, service.db.write(work))}


def _ec2(call: Call, rule: str) -> CredentialRow:
    access = call.params["credential_id"]
    row = service_of(call).db.read(lambda tx: store.credentials.get(tx, ec2_id(access)))
    if row is not None and (row.type != "ec2" or row.user_id != call.params["user_id"]):
        row = None
    row = found(row, "credential", access)  # unlike other nouns, 404 comes before 403 here
    enforce(call, rule, credential=_target(row))
    return row


def get_ec2(call: Call) -> dict[str, Any]:
    return {"credential": _ec2_view(call, _ec2(call, "identity:ec2_get_credential"))}


def delete_ec2(call: Call) -> None:
    row = _ec2(call, "identity:ec2_delete_credential")
    service_of(call).db.write(lambda tx: store.credentials.remove(tx, row.id))


class _Signed(msgspec.Struct):
    access: str
    signature: str
    host: str = ""
    verb: str = ""
    path: str = ""
    params: dict[str, str] = {}
    headers: dict[str, str] = {}
    body_hash: str = ""


class SignedRequest(msgspec.Struct):
    """Old clients say ``ec2Credentials``."""

    credentials: _Signed | None = None
    ec2Credentials: _Signed | None = None


def ec2_token(call: Call) -> Reply:
    """A token for whoever signed a request with an EC2 key (signature version 2)."""
    signed: _Signed | None = call.body.credentials or call.body.ec2Credentials
    if signed is None:
        raise BadInput("The request body lacks credentials.")
    enforce(call, "identity:ec2tokens_validate")
    service = service_of(call)
    row = service.db.read(lambda tx: store.credentials.get(tx, ec2_id(signed.access)))
    if row is None or row.type != "ec2":
        raise Unauthorized("EC2 access key not found.")
    secret = json.loads(_opened(call, row))["secret"]
    if not _signature_matches(secret, signed):
        raise Unauthorized("The EC2 signature does not match.")
    now = service.db.clock.now()
    payload = token_payload(
        row.user_id, ("ec2credential",), ("project", row.project_id or ""), now, now + service.token_ttl_s * 1_000_000
    )
    resolved = service.db.read(lambda tx: resolve(tx, payload, tx.now))
    return Reply(token_view(call, resolved), headers={"x-subject-token": service.codec.encode(payload)})


def _signature_matches(secret: str, signed: _Signed) -> bool:
    version = signed.params.get("SignatureVersion")
    method = signed.params.get("SignatureMethod", "HmacSHA256")
    if version != "2" or method not in ("HmacSHA256", "HmacSHA1"):
        return False
    pairs = sorted((key, value) for key, value in signed.params.items() if key != "Signature")
    query = "&".join(f"{quote(key, safe='-_~')}={quote(value, safe='-_~.')}" for key, value in pairs)
    digest = hashlib.sha256 if method == "HmacSHA256" else hashlib.sha1
    for host in (signed.host, signed.host.partition(":")[0]):
        text = f"{signed.verb}\n{host.lower()}\n{signed.path}\n{query}"
        wanted = b64encode(hmac.new(secret.encode(), text.encode(), digest).digest()).decode()
        if hmac.compare_digest(wanted.encode(), signed.signature.encode()):
            return True
    return False


_ONE, _EC2 = "/credentials/{credential_id}", "/users/{user_id}/credentials/OS-EC2"
ROUTES = [
    Route(method="GET", path="/credentials", handler=list_credentials),
    Route(method="POST", path="/credentials", handler=create_credential, body=NewCredential, body_key="credential",
          success=201),
    Route(method="GET", path=_ONE, handler=get_credential),
    Route(method="PATCH", path=_ONE, handler=update_credential, body=CredentialChange, body_key="credential"),
    Route(method="DELETE", path=_ONE, handler=delete_credential, success=204),
    Route(method="GET", path=_EC2, handler=list_ec2),
    Route(method="POST", path=_EC2, handler=create_ec2, body=NewEc2Credential, success=201),
    Route(method="GET", path=_EC2 + "/{credential_id}", handler=get_ec2),
    Route(method="DELETE", path=_EC2 + "/{credential_id}", handler=delete_ec2, success=204),
    Route(method="POST", path="/ec2tokens", handler=ec2_token, body=SignedRequest),
]  # fmt: skip
