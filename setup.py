"""Which packages go into a wheel. The rest is in pyproject.toml, which can't both find packages and name one.

The templates stay in prompts/, where a person looks for them; installed, that folder is agent/prompts.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["agent", "agent.*"]), "agent.prompts"],
    package_dir={"agent.prompts": "prompts"},
    package_data={"agent.prompts": ["*.j2"], "agent.observers.report": ["*.html", "*.css", "*.js"]},
)
