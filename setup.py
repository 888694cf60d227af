"""The package list, which pyproject.toml cannot express: ``kernels/`` installs as a subpackage."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["emanest", "emanest.*"]), "emanest.kernels"],
    package_dir={"emanest": "emanest", "emanest.kernels": "kernels"},
    package_data={"emanest": ["py.typed"]},
)
