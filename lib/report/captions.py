"""What every caption says of the runs behind its table or figure: network, budget, n and, beside times, the machine."""

import numpy as np
import pandas as pd

from lib import records
from lib import study as studies
from lib.params import Params
from lib.report import cells
from lib.report.claims import Evidence


def basis(make, *data) -> str:
    """The sentence for what `make(*data)` shows; empty where no runs are in the data, as in a study's file.

    Runs are the frame of records.load or networks by label (learned.networks). What shows all studies says network,
    budget and n in its rows, and the title of a bench names its machine. Otherwise that is named here, where `make` is
    declared `timed`.
    """
    timed = getattr(make, "timed", False)
    for item in data:
        if isinstance(item, Evidence) and timed:
            everything = (item.runs(name)["record"].dropna() for name in studies.names())
            return f"Times are of {' and '.join(machines(record for found in everything for record in found))}."
        if isinstance(item, pd.DataFrame) and "record" in item:
            done = item[item["status"] == "done"]
            return _sentence(list(done["record"]), _seeds(done), timed)
        if isinstance(item, dict) and "networks" not in item:
            found = [arrays["record"] for arrays in item.values() if "record" in arrays]
            seeds = sorted({record["params"]["seed"] for record in found})
            return _sentence(found, f"n=1 network each, seed {either(seeds)}", timed)
    return ""


def _sentence(done: list[dict], seeds: str, timed: bool) -> str:
    if not done:
        return "No run of ours is finished."
    params = [Params.of(**record["params"]) for record in done]
    networks = either(p.network.partition(",")[0] for p in params)
    images = either(record["train_images"] for record in done)
    epochs = either(p.epochs for p in params)
    where = f", on {' and '.join(machines(done))}" if timed else ""
    return f"{networks}, {epochs} epoch{'' if epochs == '1' else 's'} of {images} images, {seeds}{where}."


def _seeds(done: pd.DataFrame) -> str:
    """n=3 seeds a setting, n=1 to 3 seeds a setting, or n=3 seeds where there is one setting alone."""
    settings = {name for names in done["settings"] for name in names}
    counts = [sum(name in names for names in done["settings"]) for name in settings]
    if not counts:
        return "n=0"
    low, high = min(counts), max(counts)
    many = "" if len(set(map(tuple, done["settings"]))) == 1 else " a setting"
    return f"n={low if low == high else f'{low} to {high}'} seed{'' if high == 1 else 's'}{many}"


def of_one_machine(runs: pd.DataFrame) -> list[str]:
    """Where several machines trained: of which one measured costs are. Nothing where there is one."""
    several = len(machines(runs["record"].dropna())) > 1
    return [f"Speed and memory are of {machines(cells.on_one_machine(runs)['record'])[0]} alone."] if several else []


def machines(found) -> list[str]:
    """The different machines that made some records, by name."""
    return sorted({records.machine_name(record) for record in found})


def either(values) -> str:
    """The different values as text: 3, or 3 or 10; thousands have commas."""
    return " or ".join(f"{v:,}" if isinstance(v, (int, np.integer)) else str(v) for v in dict.fromkeys(values))
