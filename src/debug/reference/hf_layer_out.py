"""Prints the residual stream behind layers, in the lines of `doppler debug --trace-layers`, so that they can be diffed:

    python hf_layer_out.py -m MODEL --layers 0,12,25
    doppler debug -m MODEL --trace-layers 0,12,25 --max-tokens 0 | grep LAYER_OUT

The values are those of hooks on the layers: the last of transformers' `hidden_states` is already past the final norm.
"""

import sys

sys.dont_write_bytecode = True
import common

FIRST = 8  # elements of the last token's row that a line shows


def run(arguments):
    model = common.Model(arguments.model)
    table = common.Table(model.folder, arguments.allow_unknown_config)
    layers = common.positions(arguments.layers, table.layers, "layer", "this model")
    import rows
    import running

    loaded = running.load(model, arguments.dtype, arguments.device)
    ids, _ = running.prompt_ids(arguments, model, loaded)
    keys = table.keys(["layer_out"], layers)
    values = running.watch(loaded, table, ids, keys).values
    for layer, key in zip(layers, keys):
        stats = dict(zip(rows.STATS, rows.stats(values[key].reshape(1, -1))[0]))
        first = ", ".join(common.number(x) for x in values[key][-1][:FIRST])
        rms = common.significant(stats["rms"])
        print(f"LAYER_OUT L{layer} maxAbs={common.number(stats['max_abs'])} rms={rms} first=[{first}]")


def options():
    return common.add_prompt(common.parser(__doc__))


if __name__ == "__main__":
    common.main(options(), run)
