"""Hosts' own accounts at RabbitMQ, made and removed through its management API.

An account may serve its host's topic, call the conductors and answer; nothing else of the broker: it can neither read
another host's messages nor send it any. Chosen over ``rabbitmqctl``, which needs root or Erlang's cookie on a broker's
own machine: the API works from every control node, over TLS.
Fails with `Unavailable` when the API does not answer, or not as it should.
"""

import base64
import http.client
import json
import re
import ssl
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from cumulet.kernel.errors import Unavailable
from cumulet.settings import Tls

HOSTS, REPLIES = "hosts", "replies"  # exchanges: from hosts to conductors; answers of hosts
_SECONDS = 10


def account_name(prefix: str, host: str) -> str:
    return f"{prefix}-host-{host}"


class Permissions:
    """What an account may configure, write and read, as the broker's patterns."""

    def __init__(self, prefix: str, host: str) -> None:
        name, cloud = re.escape(host), re.escape(prefix)
        own = rf"{cloud}\.(agent\.{name}(\.each\.[0-9a-f]+)?|reply\.{name}\.[0-9a-f]+)"
        self.configure = f"^{own}$"
        self.read = f"^{own}$"
        self.write = rf"^({own}|{cloud}\.({HOSTS}|{REPLIES}))$"


class BrokerAccounts:
    """``url``: of the management API, with an administrator's name and password; ``vhost`` and ``prefix``: the
    bus's."""

    def __init__(self, url: str, vhost: str, prefix: str, tls: Tls) -> None:
        self._parts = urlsplit(url)
        self._vhost, self._prefix = quote(vhost, safe=""), prefix
        self._tls = tls
        word = f"{unquote(self._parts.username or '')}:{unquote(self._parts.password or '')}"
        self._authorization = "Basic " + base64.b64encode(word.encode()).decode()

    def ensure(self, host: str, password: str) -> str:
        """The account with exactly these rights; its name. What connects with an older password is not cut off."""
        name = account_name(self._prefix, host)
        may = Permissions(self._prefix, host)
        self._ask("PUT", f"/users/{quote(name, safe='')}", {"password": password, "tags": ""})
        rights = {"configure": may.configure, "write": may.write, "read": may.read}
        self._ask("PUT", f"/permissions/{self._vhost}/{quote(name, safe='')}", rights)
        return name

    def remove(self, host: str) -> None:
        """No account, no connection of it, no queue. Harmless if there is none."""
        name = quote(account_name(self._prefix, host), safe="")
        self._ask("DELETE", f"/users/{name}", gone_is_fine=True)
        for path in (f"/queues/{self._vhost}/", f"/exchanges/{self._vhost}/"):
            self._ask("DELETE", path + quote(f"{self._prefix}.agent.{host}", safe=""), gone_is_fine=True)

    def hosts(self) -> list[str]:
        """Whose accounts there are."""
        start = account_name(self._prefix, "")
        names = [user["name"] for user in self._ask("GET", "/users")]
        return [name.removeprefix(start) for name in names if name.startswith(start)]

    def _ask(self, method: str, path: str, body: Any = None, *, gone_is_fine: bool = False) -> Any:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context(cafile=self._tls.ca)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port or 15671, timeout=_SECONDS, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port or 15672, timeout=_SECONDS)
        headers = {"Authorization": self._authorization, "Content-Type": "application/json"}
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, f"/api{path}", body=sent, headers=headers)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"The message broker's management API does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status == 404 and gone_is_fine:
            return None
        if answer.status >= 300:
            raise Unavailable(f"The message broker's management API answered {answer.status} to {method} {path}.")
        return json.loads(said) if said else None
