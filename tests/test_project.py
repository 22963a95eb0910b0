"The project itself: what nbdev would write is there, the style, the README, the links, the wheel, the imports, the figures' alternative text."
import hashlib,json,os,re,shutil,subprocess,sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
chapters = sorted((root/'nbs').glob('*.ipynb'))
env = dict(os.environ, PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')

def sh(*cmd, cwd=root)->str:
    "Run `cmd`, and return what it printed; a bad status fails with it"
    r = subprocess.run([str(c) for c in cmd], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert r.returncode==0, f"`{' '.join(map(str, cmd))}` ended with status {r.returncode}:\n{r.stdout}"
    return r.stdout

@pytest.fixture
def copied(tmp_path):
    "A copy of the project's files, without what git ignores"
    for f in sh('git', 'ls-files', '-co', '--exclude-standard').splitlines():
        if (root/f).is_file():
            (tmp_path/'copy'/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root/f, tmp_path/'copy'/f)
    return tmp_path/'copy'

def test_export_and_clean_change_nothing(copied):
    def sums(): return {str(f.relative_to(copied)): hashlib.sha256(f.read_bytes()).hexdigest()
        for d in ('nbs','scratchai') for f in (copied/d).rglob('*') if f.suffix in ('.py','.ipynb')}
    before = sums()
    for f in (copied/'scratchai').glob('*.py'):
        if f.name!='__init__.py': f.unlink()
    sh('nbdev-export', cwd=copied)
    sh('nbdev-clean', cwd=copied)
    after = sums()
    diff = sorted(f for f in {*before, *after} if before.get(f)!=after.get(f))
    assert not diff, f"nbdev-export and nbdev-clean change {', '.join(diff)}: run both and commit what they write."

def test_style(): sh('chkstyle', 'nbs')

def test_readme():
    sys.path.insert(0, str(root/'tests'))
    from readme import readme
    assert (root/'README.md').read_text(encoding='utf-8')==readme(), 'README.md is not what nbs/index.ipynb says: run `make readme`.'

@pytest.mark.slow
def test_wheel(copied, tmp_path):
    "It installs in a clean environment, with the runtime requirements alone"
    sh(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', tmp_path/'wheel', copied)
    sh(sys.executable, '-m', 'venv', tmp_path/'venv')
    py = tmp_path/'venv/bin/python'
    sh(py, '-m', 'pip', 'install', '-q', '-c', root/'constraints.txt', next((tmp_path/'wheel').glob('*.whl')))
    out = sh(py, '-W', 'error::DeprecationWarning:scratchai', '-c', 'import scratchai.all as s; print(s.__file__)', cwd=tmp_path)
    assert str(tmp_path/'venv') in out, out
    assert 'PATH' in sh(tmp_path/'venv/bin/scratchai-train', '--help', cwd=tmp_path).upper()
    have = sh(py, '-m', 'pip', 'list', '--format=freeze').lower()
    assert not re.search(r'^(nbdev|fastai|torchvision|pandas|pytest)==', have, re.M), have

def text(file):
    "The Markdown of a page or notebook, without its code"
    if file.suffix=='.ipynb': res = '\n\n'.join(''.join(c['source']) for c in json.loads(file.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='markdown')
    else: res = file.read_text(encoding='utf-8')
    return re.sub(r'`[^`\n]*`', '', re.sub(r'```.*?```', '', res, flags=re.S))

def anchors(file): return {h.strip().replace(' ', '-') for h in re.findall(r'(?m)^#+ (.*)$', text(file))}

@pytest.mark.parametrize('file', [*chapters, *sorted(root.glob('*.md')), root/'benchmarks/RESULTS.md'], ids=lambda o: o.name)
def test_links(file):
    "Each leads to a file, and each anchor to a heading, that exist"
    for link in re.findall(r'(?:\]\(|src="|href=")([^)"\s]+)', text(file)):
        path,_,anchor = link.partition('#')
        if re.match(r'[a-z]+:', link): continue
        to = file.parent/path if path else file
        assert to.exists() and (not anchor or anchor in anchors(to)), f'{link} leads nowhere'

@pytest.mark.parametrize('file', chapters, ids=lambda o: o.name)
def test_figures_have_alternative_text(file):
    for c in json.loads(file.read_text(encoding='utf-8'))['cells']:
        source = ''.join(c['source'])
        pictures = sum('image/png' in o.get('data', {}) for o in c.get('outputs', []))
        assert not pictures or '#| fig-alt:' in source, f'the picture of this cell has no `#| fig-alt:`:\n{source}'
        assert '![](' not in source and not re.search(r'<img(?![^>]*alt=")', source), source

order = [o.stem for o in chapters]
def module(name): return name.partition('_')[2]
@pytest.mark.parametrize('file', [f for f in chapters if f.stem not in ('index','98_book','99_all')], ids=lambda o: o.name)
def test_imports_only_what_stands_before(file):
    "A chapter exports code that needs chapters before it, or of the workshop; no module of torch that it rebuilds, no library that it replaces"
    place = {module(o): int(o[:2]) for o in order if o[:2].isdigit()}
    exported = (root/'scratchai'/f'{module(file.stem)}.py').read_text(encoding='utf-8')
    for o in re.findall(r'(?m)^from \.(\w+) import', exported):
        assert place[o]<int(file.stem[:2]) or 30<=place[o]<40, f'{file.stem} imports {o}, which stands behind it'
    assert not re.search(r'(?m)^\s*(import|from) (torch\.nn|torch\.optim|torch\.utils\.data|torchvision|fastai)\b', exported), exported

def test_no_name_in_two_modules():
    import ast
    where = {}
    for f in (root/'scratchai').glob('*.py'):
        for o in ast.parse(f.read_text(encoding='utf-8')).body:
            patched = any('patch' in ast.unparse(d) for d in getattr(o, 'decorator_list', ()))
            if isinstance(o, (ast.FunctionDef, ast.ClassDef)) and not patched: where.setdefault(o.name, []).append(f.stem)
    assert not (twice := {k:v for k,v in where.items() if len(set(v))>1}), twice

alone = """
import os,sys,torch,numpy,PIL.Image,matplotlib.pyplot,fastcore.all,fastprogress.fastprogress # what takes long, once
for m in sys.argv[1:]:
    if os.fork()==0: __import__(f'scratchai.{m}'), os._exit(0) # an error ends the child with status 1
    assert os.wait()[1]==0, f'scratchai.{m} cannot be imported first'
"""
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='one process a module would take minutes')
def test_modules_import_alone():
    "Each module can be imported first, so there are no circles"
    sh(sys.executable, '-c', alone, *(f.stem for f in sorted((root/'scratchai').glob('*.py')) if f.stem!='_modidx'))
