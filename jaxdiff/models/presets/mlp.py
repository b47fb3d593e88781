"""A small network for vectors: points in the plane of standard deviation 0.5, trained as in EDM2."""

from jaxdiff.models.presets.spec import Spec

PRESETS: dict[str, Spec] = {
    "mlp_toy": Spec(
        "mlp",
        {"features": 64, "num_blocks": 3, "magnitude_preserving": True},
        (2,),
        process={"name": "edm"},
        prediction="edm",
        input_scale="unit_variance",
        time_input={"name": "log_sigma"},
        sigma_data=0.5,
        parameters=41_412,
        reference="after the toy example of arXiv:2406.02507, appendix C; the network is jaxdiff's own",
    )
}
