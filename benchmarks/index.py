"""Which keys find segments best: mean average precision of each layer's heads over synthetic clips.

python benchmarks/index.py [--model MODEL] [--clips 400] [--write]

`--write` records the choice in the config.json of the model's folder, from which new stores take it.
"""

import argparse
import json

from common import report

from vococache.model import load_model
from vococache.model.checkpoints import locate
from vococache.pipeline.search.measure import measure_index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="synthetic")
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    model = load_model(options.model)
    found = measure_index(model, options.clips)
    other = measure_index(model, options.clips, seed="other")  # clips that the choice was not made on
    rows: list[list[object]] = [["layer", "all heads", *(f"head {head}" for head in range(model.config.kv_heads))]]
    for layer, (whole, alone) in enumerate(zip(found.layers_whole, found.heads_alone, strict=True)):
        rows.append([layer, f"{whole:.3f}", *(f"{value:.3f}" for value in alone)])
    share = len(found.heads) / (2 * model.config.layers * model.config.kv_heads)
    rows.append(
        [f"chosen: layer {found.layer}, heads {list(found.heads)}: {found.precision:.3f}, {share:.1%} of bytes"]
    )
    rows.append([f"of other clips, layer {found.layer} whole: {other.layers_whole[found.layer]:.3f}"])
    if options.write:
        path = locate(options.model)[0] / "config.json"
        config = json.loads(path.read_text())
        config["search"] = config.get("search", {}) | {"layer": found.layer, "heads": list(found.heads)}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    report(
        "index", rows,
        {"layer": found.layer, "heads": list(found.heads), "precision": found.precision, "chance": found.chance,
         "layers": found.layers_whole.round(4).tolist(), "heads_alone": found.heads_alone.round(4).tolist(),
         "other_clips": {"layer": other.layer, "heads": list(other.heads), "precision": other.precision}},
    )  # fmt: skip


if __name__ == "__main__":
    main()
