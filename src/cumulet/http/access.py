"""Access rules: the requests to which an application credential is confined."""

import re
from functools import lru_cache

from cumulet.http.service import ServiceApi
from cumulet.kernel.context import RequestContext

_WILDCARD = re.compile(r"\\\*\\\*|\\\*|\\\{[^/]*?\\\}")


@lru_cache(maxsize=1024)
def _pattern(path: str) -> re.Pattern[str]:
    """``*`` and ``{name}`` stand for one segment, ``**`` for anything."""
    text = _WILDCARD.sub(lambda found: ".*" if found.group() == r"\*\*" else "[^/]+", re.escape(path))
    return re.compile(text + r"\Z")


def permits(ctx: RequestContext, api: ServiceApi, method: str, path: str) -> bool:
    """The path counts with and without the prefix the service is mounted at."""
    if ctx.access_rules is None:
        return True
    paths = (path, path.removeprefix(api.prefix))
    return any(
        service in api.service_types and rule_method == method and any(_pattern(rule).match(p) for p in paths)
        for service, rule_method, rule in ctx.access_rules
    )
