"""Short-lived signed URLs: how an agent on another host reads an image or hands in a snapshot without a token.

The signature covers method, image, upload and expiry; the key stands in the database, so any API process can check what
any conductor signed.
"""

import hashlib
import hmac
from urllib.parse import urlencode

from cumulet.kernel.errors import Forbidden

LIFETIME_SECONDS = 6 * 3600  # a large image on a slow link; the operation has its own deadline


def _signature(secret: str, method: str, image_id: str, upload_id: str, expires: int) -> str:
    text = f"{method}\n{image_id}\n{upload_id}\n{expires}".encode()
    return hmac.new(bytes.fromhex(secret), text, hashlib.sha256).hexdigest()


def signed_query(secret: str, method: str, image_id: str, now_us: int, upload_id: str = "") -> str:
    expires = now_us // 1_000_000 + LIFETIME_SECONDS
    signature = _signature(secret, method, image_id, upload_id, expires)
    return urlencode({"upload": upload_id, "expires": expires, "signature": signature})


def check(
    secret: str, method: str, image_id: str, upload_id: str, expires: str | None, signature: str | None, now_us: int
) -> None:
    """Raises Forbidden unless the URL was signed by us for this and has not expired."""
    if not expires or not expires.isdigit() or len(expires) > 12 or not signature:
        raise Forbidden("The URL is not signed.")
    wanted = _signature(secret, method, image_id, upload_id, int(expires))
    if not hmac.compare_digest(wanted.encode(), signature.encode()):
        raise Forbidden("The signature does not match.")
    if int(expires) * 1_000_000 < now_us:
        raise Forbidden("The URL has expired.")
