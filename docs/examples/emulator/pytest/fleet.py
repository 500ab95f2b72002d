"""What is under test here: a small program that keeps a number of servers."""

import openstack.exceptions


def ensure(cloud, name, count):
    """Have ``count`` servers called name-1, name-2, …; their names that work. A server that fails is replaced once."""
    cloud.compute.status_code_retries, cloud.compute.status_code_retry_delay = 3, 0.1  # of a 503
    working = []
    for number in range(1, count + 1):
        wanted = f"{name}-{number}"
        for _ in range(2):
            server = cloud.compute.find_server(wanted)
            if server is None:
                server = cloud.compute.create_server(
                    name=wanted,
                    image_id=cloud.image.find_image("cirros").id,
                    flavor_id=cloud.compute.find_flavor("m1.tiny").id,
                    networks=[{"uuid": cloud.network.find_network("private").id}],
                )
            try:
                cloud.compute.wait_for_server(server, interval=0.05, wait=30)
            except openstack.exceptions.ResourceFailure:
                cloud.compute.delete_server(server)
                cloud.compute.wait_for_delete(server, interval=0.05, wait=30)
            else:
                working.append(wanted)
                break
    return working
