"""``cumulet bench``: one suite of measurements, the same for any OpenStack-compatible cloud.

Owns: a lean HTTP client (`wire`), what it makes in the cloud and removes again (`target`), the cases (`cases`), figures
and their files (`results`), and a private cloud of its own with the fake agent (`private`). It speaks only OpenStack's
APIs; where the cloud is Cumulet, its operator API adds CPU, memory and statements.
Refuses: to touch anything whose name does not carry its prefix.
Fails: a case that cannot be measured says why in its row and the others go on; what was made is removed in any case.
"""
