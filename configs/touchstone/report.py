"""Structured radiology reports (AbdomenAtlas 3.0's form) of a folder of CTs with masks; resumable.

Command   python -m launch report --config configs/touchstone/report.py --workdir runs/report
Argument  "published": the released generator's behaviour, its quirks included (docs/report.md)
Yours     --config.jobs.report.data=DIR with DIR/CASE/ct.nii.gz and DIR/CASE/segmentations/*.nii.gz;
          for what `predict` wrote into WORKDIR: --config.jobs.report.masks=WORKDIR/predict
Fetches   38 MB from the package index, once: one CT with a model's masks of nine organs
Writes    reports.csv, measurements.json, metadata.csv, statistics.json, findings.jsonl; in each
          case's folder its report, JSON and a picture of every lesion
Hardware  CPU; under ten seconds a case on one core, less where no pancreatic tumor is to be staged
"""

from ml_collections import ConfigDict

DATA = "data:example-ct"


def get_config(arg: str = "") -> ConfigDict:
    """The job; "published" as ``arg`` for the released generator's rules."""
    if arg not in ("", "published"):
        raise ValueError(f"argument {arg!r}: legal is 'published' or nothing")
    config = ConfigDict()
    config.workers = 2  # threads: each holds a CT and the boxes of its masks
    config.jobs = ConfigDict(
        {
            "report": {
                "name": "touchstone_jax.report.job:Report",
                "data": DATA,
                "layout": "auto",
                "masks": None,  # None: beside the CTs
                "segmentations": None,  # folder of the masks; None: segmentations or predictions
                "rules": arg or "corrected",
                "min_component_mm3": 10.0,
                "phases": None,  # a CSV with the columns BDMAP ID and CT Phase
                "pictures": True,
                "narrative": False,
                "endpoint": None,  # {"url": …, "model": …, "key_env": …}: adapts its style
                "allow": (),  # ("missing_mask",): organs without a mask are no errors
                "fingerprints": "content",
            }
        }
    )
    return config
