"""`cumulet chaos`: random work by several clients while the cloud is disturbed, then a reckoning.

Owns nothing of the cloud: clients speak plain HTTP; what is compared at the end is what was acknowledged, the rows, the
journal and the hosts. Refuses clouds that are not its own. Fails: with violations, each told with the story of its
object. See docs/chaos.md.
"""
