"The package's facts stand in settings.ini; this file hands them to setuptools."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

cfg = ConfigParser()
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
setup(
    name=cfg['name'], version=re.search(r'__version__ = "(.+)"', Path('scratchai/__init__.py').read_text())[1],
    description=cfg['description'], author=cfg['author'], license=cfg['license'], keywords=cfg['keywords'],
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=['scratchai'], python_requires=f">={cfg['min_python']}", zip_safe=False,
    install_requires=cfg['requirements'].split(), extras_require={k: cfg[f'{k}_requirements'].split() for k in ('dev','lab')},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['scratchai=scratchai._modidx:d']},
    classifiers=[f"Development Status :: {cfg['status']}", f"Intended Audience :: {cfg['audience']}",
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'])
