"The whole test suite: every chapter as a test, and the checks around them. Ends with a line `N passed, N failed`."
import hashlib,os,re,shutil,signal,subprocess,sys,tempfile,time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parent.parent
bin_ = Path(sys.executable).parent
tmp = Path(tempfile.mkdtemp(prefix='scratchai-test-'))
modules = [f.stem for f in (root/'scratchai').glob('*.py') if f.stem!='_modidx']
# Nothing outside the temporary folder is written; a deprecation that our code causes is an error; two notebooks run side by side
env = dict(os.environ, SCRATCHAI_HOME=str(tmp/'home'), MPLBACKEND='agg', MPLCONFIGDIR=str(tmp/'mpl'), OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive', PATH=f"{bin_}{os.pathsep}{os.environ['PATH']}",
           PYTHONWARNINGS=','.join(f'error::DeprecationWarning:scratchai.{m}' for m in modules))
for k in ('PYTHONPATH', 'MAKEFLAGS', 'MAKELEVEL'): env.pop(k, None)
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell has its background jobs ignore Ctrl-C, and what they start inherits that

def sh(*cmd, cwd=root, ok=0, timeout=900, **kwargs)->str:
    "Run `cmd`, and return what it printed; a status other than `ok` raises with it"
    r = subprocess.run([str(c) for c in cmd], cwd=cwd, env={**env, **kwargs}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    if r.returncode!=ok: raise AssertionError(f"`{' '.join(map(str, cmd))}` ended with status {r.returncode}, not {ok}:\n{r.stdout}")
    return r.stdout

def copy(to)->Path:
    "The files of the project, without what git ignores"
    for f in sh('git', 'ls-files', '-co', '--exclude-standard').split('\n'):
        if f and (root/f).exists():
            (to/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root/f, to/f)
    return to

def export_and_clean():
    "Exporting and cleaning change nothing"
    there = copy(tmp/'export')
    def sums(): return {str(f.relative_to(there)): hashlib.sha256(f.read_bytes()).hexdigest() for d in ('nbs','scratchai') for f in (there/d).rglob('*') if f.suffix in ('.py','.ipynb')}
    before = sums()
    for f in (there/'scratchai').glob('*.py'):
        if f.name!='__init__.py': f.unlink()
    sh('nbdev-export', cwd=there)
    sh('nbdev-clean', cwd=there)
    after = sums()
    diff = sorted(f for f in {*before, *after} if before.get(f)!=after.get(f))
    assert not diff, f"nbdev-export and nbdev-clean change {', '.join(diff)}: run both and commit what they write."

def style(): sh('chkstyle', 'nbs')
def readme(): sh(sys.executable, 'tests/readme.py')

def wheel():
    "The wheel installs in a clean environment, with the runtime requirements alone"
    sh(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', tmp/'wheel', copy(tmp/'src'))
    sh(sys.executable, '-m', 'venv', tmp/'venv')
    py = tmp/'venv/bin/python'
    sh(py, '-m', 'pip', 'install', '-q', '-c', root/'constraints.txt', next((tmp/'wheel').glob('*.whl')))
    out = sh(py, '-W', 'error::DeprecationWarning:scratchai', '-c', 'import scratchai.all as s; print(s.__file__, len(s.__all__))', cwd=tmp)
    assert str(tmp/'venv') in out, out
    assert 'PATH' in sh(tmp/'venv/bin/scratchai-train', '--help', cwd=tmp).upper()
    have = sh(py, '-m', 'pip', 'list', '--format=freeze').lower()
    assert not re.search(r'^(nbdev|fastai|torchvision|pandas)==', have, re.M), have

def notebook(nb):
    "Run a chapter from top to bottom"
    def run(): sh('nbdev-test', nb.relative_to(root))
    run.__name__ = nb.name
    return run

def script(f):
    "A check of its own: exit status 0 passes"
    def run(): return sh(sys.executable, f)
    run.__name__ = f.name
    return run

def attempt(check)->bool:
    "Run one check, and say how it ended"
    start = time.time()
    try: check()
    except Exception as e: msg = f'FAILED\n{e}'
    else: msg = 'ok'
    print(f'{check.__name__:32} {time.time()-start:6.1f} s  {msg}', flush=True)
    return msg=='ok'

if __name__=='__main__':
    only = sys.argv[1:]
    def chosen(checks): return [c for c in checks if not only or any(o in c.__name__ for o in only)]
    notebooks = [notebook(f) for f in sorted((root/'nbs').glob('*.ipynb'))]
    alone = [export_and_clean, style, readme, wheel] + [script(f) for f in sorted((root/'tests').glob('check_*.py'))]
    try:
        sh(sys.executable, '-c', 'from scratchai.doodles import doodles; doodles()')  # drawn once, for all chapters
        with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as ex: results = list(ex.map(attempt, chosen(notebooks)))
        results += [attempt(c) for c in chosen(alone)]
    finally: shutil.rmtree(tmp, ignore_errors=True)
    print(f'{sum(results)} passed, {len(results)-sum(results)} failed')
    sys.exit(not all(results) or not results)
