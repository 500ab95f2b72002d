"""Tokens: by password, and their check."""

from cumulet.bench.suite import Bench
from cumulet.bench.target import Refused


def tokens(bench: Bench) -> None:
    """Tokens by password, and their check."""
    user, size = bench.user, bench.sizes
    login = user.login_request()

    def log_in() -> float:
        answer = user.send(login)
        if answer.status != 201:
            raise Refused(answer, "a token by password")
        return answer.seconds

    bench.samples("token.password", "token by password", log_in, size.samples)
    check = user.prepare("GET", "identity", "/auth/tokens", headers={"X-Subject-Token": user.token})
    bench.samples("token.check", "token checked", bench.asking(check), size.samples * 3)
    bench.rate("token.rate", f"tokens checked by {size.clients} clients", check)
