"""Starts the project's private cluster, says where it is, and keeps it until its input ends."""

import json
import os
import sys

import ray

from cluster.ray_cluster import connected


def main() -> None:
    with connected(num_cpus=1, object_store_bytes=100_000_000, dashboard=True):
        import ray._private.worker as worker

        node = worker._global_node
        facts = {
            "dashboard": node.address_info["webui_url"],
            "node": ray.util.get_node_ip_address(),
            "token": os.environ["RAY_AUTH_TOKEN_PATH"],
        }
        print(json.dumps(facts), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
