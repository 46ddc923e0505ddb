"""Ray's multi-node test cluster as a process of its own: `python cluster_process.py CPUS_OF_NODE...`, head first.

Says the cluster's address. Answers lines on stdin: "actors" with the nodes on which actors of each class were placed
so far, "kill CLASS" by killing the node that such an actor lives on.
"""

import json
import os
import sys
from typing import Any

from ray.cluster_utils import Cluster


def main() -> None:
    """Serve until stdin ends."""
    head, *others = [int(cpus) for cpus in sys.argv[1:]]
    size: dict[str, Any] = {"object_store_memory": 150 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, "include_dashboard": False, **size})
    nodes = [cluster.add_node(num_cpus=cpus, **size) for cpus in others]
    cluster.wait_for_nodes()
    print(json.dumps(cluster.address), flush=True)
    for line in sys.stdin:
        command, *names = line.split()
        places = actors(cluster)
        if command == "kill":
            (victim,) = (node for node in nodes if node.node_id == places[names[0]][-1])
            cluster.remove_node(victim, allow_graceful=False)
        print(json.dumps(places), flush=True)
    cluster.shutdown()
    os._exit(0)


def actors(cluster: Cluster) -> dict[str, list[str]]:
    """Node ids by actor class, in order of placement."""
    places: dict[str, list[str]] = {}
    for actor in cluster.global_state.actor_table(None).values():
        name, node = actor["ActorClassName"], actor["Address"]["NodeID"]
        stage = "watch" if "_ResidentActor" in name else "decode" if "_DecodeActor" in name else "compress"
        if node and (stage == "watch" or "MapWorker" in name):
            places.setdefault(stage, []).append(node)
    return places


if __name__ == "__main__":
    main()
