"""Microversions of compute: the range announced. Which body fields a version knows stands at the fields
(`schema`: ``Since``, ``Until``), which views it gets in `views` and the handlers.

The maximum is the highest version below which everything that is built behaves exactly as upstream.
"""

from cumulet.http import Microversions, parse_version

MINIMUM = "2.1"
MAXIMUM = "2.96"

MICROVERSIONS = Microversions(
    service_type="compute",
    minimum=parse_version(MINIMUM),
    maximum=parse_version(MAXIMUM),
    legacy_header="x-openstack-nova-api-version",
)
