"The `scratchai-train` command as a user meets it: real processes, and everything that can be wrong with its arguments, its folders and its surroundings."
import json,os,signal,subprocess,sys
from pathlib import Path

import pytest
from safetensors import safe_open

from scratchai.core import *
from scratchai.data import *
from scratchai.learner import *
from scratchai.predict import *
from scratchai.command import *
from scratchai.imagenette import *
from scratchai.losses import accuracy

from conftest import children,gone

exe = Path(sys.executable).parent/'scratchai-train'
fast = ['--epochs','1','--bs','4','--size','32','--n-workers','0']
sizes = dict(train_cat=6, train_dog=6, val_cat=3, val_dog=3)

def start(cwd, *args, env=None, **kwargs):
    "Start the command in the folder `cwd`"
    cwd.mkdir(exist_ok=True)
    env = {**os.environ, 'SCRATCHAI_HOME':str(cwd.parent/'home'), **(env or {})}
    std = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors='surrogateescape')
    return subprocess.Popen([str(exe), *map(str, args)], cwd=cwd, env=env, **{**std, **kwargs})

def run(cwd, *args, **kwargs):
    "Its status, output, errors, and the files and folders it left"
    p = start(cwd, *args, **kwargs)
    out,err = p.communicate(timeout=300)
    return p.returncode,out,err,sorted(str(o.relative_to(cwd)) for o in cwd.rglob('*'))

saved = ['scratchai-out', 'scratchai-out/1', 'scratchai-out/1/report.png', 'scratchai-out/1/weights.safetensors']

def test_run(pictures, tmp_path):
    status,out,err,files = run(tmp_path/'cwd', pictures(**sizes), '--epochs', 2, '--bs', 4, '--size', 32)
    assert status==0 and files==saved, (out, err, files)
    for o in ('Data: your folder, 12 training and 6 validation pictures of 2 classes', 'Model: simple_cnn', 'train_loss', 'Accuracy: ',
        'Weights: scratchai-out/1/weights.safetensors', 'Report: '): assert o in out, (o, out)
    rows = [l for l in out.splitlines() if l[:1] in ('0','1')]
    assert len(rows)==2 and '\r' not in out, out # plain lines where the output is no terminal
    with safe_open(tmp_path/'cwd'/files[-1], 'pt') as f: meta = f.metadata()
    assert json.loads(meta['vocab'])==['cat','dog'] and meta['size']=='32' and meta['arch']=='simple_cnn'

def test_best_data(tmp_path, monkeypatch):
    "Imagenette is not downloaded unasked; who has it trains on it"
    monkeypatch.setenv('SCRATCHAI_HOME', str(tmp_path))
    monkeypatch.setattr('scratchai.imagenette.doodles', lambda: 'drawn')
    assert best_data()==('drawn', 'the built-in doodles')
    have = tmp_path/'data/imagenette2-160'
    (have/'train').mkdir(parents=True)
    assert best_data()==best_data(download=True)==(have, 'Imagenette, 160 px')

def test_same_seed_same_model(pictures, tmp_path):
    "Whatever the number of workers"
    path = pictures(**sizes)
    ws = [save_weights(scratchai_train(path, epochs=1, bs=4, size=32, seed=3, n_workers=n, out=tmp_path/f'run{n}'), tmp_path/f'{n}.safetensors')
        for n in (0,2)]
    assert ws[0].read_bytes()==ws[1].read_bytes()

# What is wrong before training

@pytest.mark.parametrize('k,v,says', [('size',0,'--size is 0'), ('bs',0,'--bs is 0'), ('epochs',0,'--epochs is 0'), ('lr',float('nan'),'--lr is nan'),
    ('lr',float('inf'),'--lr is inf'), ('lr',0.,'--lr is 0'), ('n_workers',-1,'--n-workers is -1'), ('arch','resnet99','choose one of simple_cnn')])
def test_numbers(k, v, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says): scratchai_train(tmp_path, **{k:v})
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('classes,says', [({}, 'holds no class folders'), (dict(train_cat=3, train_dog=0, val_cat=1, val_dog=1), 'train/dog` holds no pictures'),
    (dict(train_cat=3, val_cat=1, val_dog=1), '`dog` is in'), (dict(train_cat=3, val_cat=1), 'has one class, `cat`'),
    (dict(val_cat=1, val_dog=1), 'no folder .*train` to train on'), (dict(cat=6, dog=0), 'dog` holds no pictures'), (dict(cat=6), 'has one class'),
    (dict(cat=1, dog=1), '0 validate'), (dict(train=3, val=3), 'train` holds no class folders')])
def test_folders(pictures, classes, says, tmp_path, monkeypatch):
    (tmp_path/'pictures').mkdir()
    (tmp_path/'cwd').mkdir()
    monkeypatch.chdir(tmp_path/'cwd')
    with pytest.raises(UsageError, match=says): scratchai_train(pictures(**classes))
    assert not list((tmp_path/'cwd').iterdir())

def test_no_folder(pictures, tmp_path):
    for o,says in ((tmp_path/'nowhere','no folder'), ('','no folder'), (pictures(cat=1)/'cat/0.JPEG','is a file')):
        with pytest.raises(UsageError, match=says): check_folder(o)

@pytest.mark.parametrize('classes,n', [(dict(train_cat_2024=3, train_cat=2, train_dog_a_b=4, val_cat_x=2, val_dog=1), (9,3)),
    (dict(cat_2024=10, dog=5, dog_a_b=5), (16,4)), (dict(train_cat_2024=10, train_dog=10), (16,4)), (dict(train_cat=3, train_dog=3, valid_cat=1, valid_dog=1), (6,2)),
    (dict(train=10, car=10), (16,4))])
def test_what_the_check_accepts_the_loaders_find(pictures, classes, n, tmp_path):
    "Classes with deeper folders, other names, no split"
    path = check_folder(pictures(**classes), out=tmp_path/'out')
    learn = scratchai_train(path, epochs=1, bs=4, size=16, n_workers=0, out=tmp_path/'out')
    assert (len(learn.dls.train_ds), len(learn.dls.valid_ds))==n
    assert list(learn.dls.vocab)==classes_in(class_roots(path)[0])

def test_a_random_fifth_validates(pictures, tmp_path):
    status,out,err,files = run(tmp_path/'cwd', pictures(cat=10, dog=10), *fast)
    assert status==0 and 'your folder, of which a random fifth validates, 16 training and 4 validation pictures' in out, (out, err)

def test_results_do_not_become_a_class(pictures, tmp_path, monkeypatch):
    path = pictures(cat=5, dog=5)
    monkeypatch.chdir(path)
    with pytest.raises(UsageError, match='would lie among the classes'): scratchai_train('.')
    with pytest.raises(UsageError, match='would lie among the classes'): scratchai_train(path, out=path/'cat/run')
    assert sorted(o.name for o in path.iterdir())==['cat','dog']
    path = pictures('split', **sizes)
    monkeypatch.chdir(path)
    scratchai_train('.', epochs=1, bs=4, size=16, n_workers=0)
    assert [len(classes_in(o)) for o in class_roots(path)]==[2,2]

# The folder for results

def test_out_folder_is_taken_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'file.txt').write_text('mine')
    (tmp_path/'empty').mkdir()
    for o,says in (('file.txt/run','cannot be made: Not a directory'), ('file.txt','is there already'), ('empty','is there already'), ('x'*300,'too long')):
        with pytest.raises(UsageError, match=says), out_folder(o): pass
    with out_folder() as a, out_folder() as b:
        assert (str(a),str(b))==('scratchai-out/1','scratchai-out/2')
        (b/'weights').write_text('')
    with out_folder() as c: assert str(c)=='scratchai-out/1'
    assert sorted(str(o.relative_to(tmp_path)) for o in tmp_path.rglob('*'))==['empty','file.txt','scratchai-out','scratchai-out/2','scratchai-out/2/weights']
    (tmp_path/'taken').mkdir()
    with pytest.raises(OSError, match='oh'), out_folder('taken/a/b'): raise OSError('oh')
    assert (tmp_path/'taken').exists() and not (tmp_path/'taken/a').exists()

def test_default_folder_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'scratchai-out').write_text('mine')
    with pytest.raises(UsageError, match='cannot be made'), out_folder(): pass

@pytest.mark.slow
def test_two_at_once(pictures, tmp_path):
    "Each has its own number; of two with the same name, one says so"
    path,cwd = pictures(**sizes),tmp_path/'cwd'
    assert [p.wait(300) for p in [start(cwd, path, *fast) for _ in range(2)]]==[0,0]
    assert sorted(str(o.relative_to(cwd)) for o in cwd.rglob('*.*'))==[f'scratchai-out/{i}/{o}' for i in (1,2) for o in ('report.png','weights.safetensors')]
    ps = [start(cwd, path, *fast, '--out', 'run') for _ in range(2)]
    errs = [p.communicate(timeout=300)[1] for p in ps]
    assert sorted(p.returncode for p in ps)==[0,2] and 'is there already' in ''.join(errs), errs

def test_refused(pictures, tmp_path):
    "Status 2, one sentence, nothing written"
    (tmp_path/'file.txt').write_text('mine')
    status,out,err,files = run(tmp_path/'cwd', pictures(**sizes), '--out', tmp_path/'file.txt/run')
    assert status==2 and not out and not files and not (tmp_path/'home').exists(), (out, err, files)
    assert len(err.splitlines())==1 and err.startswith('scratchai-train: ') and 'cannot be made' in err, err

# What goes wrong in training

@pytest.mark.parametrize('lr', [1e12, 1e30])
def test_weights_that_are_no_numbers_are_not_saved(pictures, lr, tmp_path):
    status,out,err,files = run(tmp_path/'cwd', pictures(**sizes), *fast, '--lr', lr)
    assert status==1 and not files and 'lower --lr' in err and 'Traceback' not in err and 'Weights' not in out, (out, err, files)

def test_unreadable_picture(pictures, tmp_path):
    path = pictures(**sizes)
    for o in ('train/cat/2.JPEG', 'val/dog/0.JPEG'): (path/o).write_bytes(b'no picture')
    status,out,err,files = run(tmp_path/'cwd', path, *fast)
    assert status==1 and not files and 'Traceback' not in err, (out, err, files)
    assert 'cat/2.JPEG) cannot be read: ' in err and 'UnidentifiedImageError' in err and '--skip-bad leaves out' in err, err
    status,out,err,files = run(tmp_path/'cwd', path, '--skip-bad', *fast)
    assert status==0 and files==saved and '1 of 12 items were left out' in err and 'val/dog/0.JPEG' in err, (out, err, files)

def test_predictions_keep_their_places(pictures, tmp_path):
    path = pictures(**sizes)
    good = scratchai_train(path, epochs=1, bs=4, size=16, n_workers=0, out=tmp_path/'a')
    want = valid_preds(good)
    want[[0,4]] = -1
    for o in ('val/cat/0.JPEG', 'val/dog/1.JPEG'): (path/o).write_bytes(b'no picture')
    dls = folder_dls(path, bs=4, size=16, n_workers=0, skip_bad=True)
    learn = Learner(dls, good.model, metrics=accuracy)
    with pytest.warns(UserWarning, match='2 of 6'): assert valid_preds(learn).equal(want)
    with pytest.warns(UserWarning): assert len(show_predictions(learn))==4

def test_nothing_can_be_read(pictures, tmp_path):
    path = pictures(**sizes)
    for o in (path/'val').rglob('*.JPEG'): o.write_bytes(b'no picture')
    with pytest.raises(LoaderError, match='There is no valid_loss'), pytest.warns(UserWarning):
        scratchai_train(path, epochs=1, bs=4, size=16, n_workers=0, skip_bad=True, out=tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_ctrl_c(pictures, tmp_path):
    cwd = tmp_path/'cwd'
    p = start(cwd, pictures(**sizes), '--epochs', 5000, '--bs', 4, '--size', 32, '--n-workers', 2, start_new_session=True)
    while not p.stdout.readline().startswith('0'): assert p.poll() is None, p.stderr.read()
    workers = children(p.pid)
    os.killpg(p.pid, signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    assert p.returncode==130 and 'stopped' in err and 'Traceback' not in err and not list(cwd.iterdir()), (p.returncode, err)
    assert workers and gone(workers)

# What is around it

@pytest.mark.parametrize('lines', [0, 3])
def test_closed_pipe(pictures, lines, tmp_path):
    "Nobody reads what it prints: it trains on, and saves"
    cwd = tmp_path/'cwd'
    p = start(cwd, pictures(**sizes), *fast, bufsize=1)
    for _ in range(lines): p.stdout.readline()
    p.stdout.close()
    p.stdout = None
    err = p.communicate(timeout=300)[1]
    assert p.returncode==0 and 'Error' not in err and 'Traceback' not in err, err
    assert (cwd/saved[-1]).exists() and (cwd/saved[-2]).exists()

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no /dev/full')
def test_output_on_a_full_disk(pictures, tmp_path):
    with open('/dev/full', 'w') as f: status,_,err,files = run(tmp_path/'cwd', pictures(**sizes), *fast, stdout=f)
    assert status==0 and files==saved and 'Traceback' not in err, err

def test_odd_names(pictures, tmp_path):
    "Names with `$`, and names that are not UTF-8, of classes, files and results; a terminal that knows ASCII only"
    path = pictures(**{'train_$50_$100':5, 'train_dog':5, 'val_$50_$100':2, 'val_dog':2})
    for o in ('train','val'):
        try: (path/o/'dog').rename(os.fsdecode(os.fsencode(path/o/'h')+b'\xfcnd'))
        except OSError: pytest.skip('this file system knows UTF-8 only')
        (path/o/'$50').rename(path/o/'ü$50_$100')
    status,out,err,files = run(tmp_path/'cwd', path, *fast, '--out', b'r\xfcn'.decode(errors='surrogateescape'), env=dict(PYTHONIOENCODING='ascii'))
    assert status==0 and len(files)==3 and 'Weights: r' in out and 'Traceback' not in err, (out, err, files)

def test_threads_sleep():
    "The variable is set before torch is loaded, and a user's own value stays"
    code = "import sys; from scratchai.command import *; import os; print(os.environ['OMP_WAIT_POLICY'])"
    source = Path(sys.modules['scratchai.command'].__file__).read_text(encoding='utf-8')
    assert source.index("os.environ.setdefault('OMP_WAIT_POLICY'")<source.index('from fastcore')<source.index('from .core')
    for own in (None,'active'):
        env = {k:v for k,v in os.environ.items() if k!='OMP_WAIT_POLICY'} | ({'OMP_WAIT_POLICY':own} if own else {})
        r = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=100)
        assert r.stdout.strip()==(own or 'passive'), r.stderr
