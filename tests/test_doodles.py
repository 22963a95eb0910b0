"Doodles: the same pictures for the same seed, on every machine and for any number of processes; a folder is there whole or not at all"
import os,signal,warnings
import multiprocessing as mp

import numpy as np,pytest,torch
from fastcore.test import test_close as close,test_fail as fails
from conftest import until

from scratchai.doodles import Canvas,Doodle,Shapes,class_names,curve,doodle,doodles,hsv,tint

def digest(p): return {o.relative_to(p).as_posix(): o.read_bytes() for o in p.rglob('*_*.*')}

def test_colours():
    assert hsv(0, 1, 1)==(255,0,0)
    assert [tint((100,100,100), o) for o in (0, .5, -.5)]==[(100,100,100), (178,178,178), (50,50,50)]

def test_curve_goes_through_its_points():
    pts = [(-.8,.5), (-.3,-.6), (.4,-.2), (.8,.6)]
    close(curve(pts)[[0,6,12,18]], pts)
    assert [len(curve(pts, **kw)) for kw in ({}, dict(closed=True), dict(n=3))]==[19,24,10]
    assert (curve('-80,50 -30,-60 40,-20 80,60')==curve(pts)).all()

def test_pose():
    c = Canvas(64, seed=1)
    assert (c.im.size,c.mask.mode)==((128,128),'L')
    with c.at(.5, 0, size=.5, turn=90): close(c.px([(0,0), (1,0)]), [(96,64), (96,96)])
    with c.at(flip=True): close(c.px((1,0)), (0,64))
    with pytest.raises(KeyError), c.at(.5, mark=255): raise KeyError
    close(c.px((0,0)), (64,64)) # pose and mark are back also after an error
    assert c.mark==0

def test_the_mask_holds_what_is_drawn_while_mark_is_set():
    c = Shapes(160, 3)
    c.box(-1, -1, 1, 1, (9,9,9))
    assert not np.array(c.mask).any()
    c.mark = 255
    c.disc(0, 0, .5, (250,0,0))
    assert c.mask.getpixel((160,160))==255 and c.mask.getpixel((2,2))==0
    before = c.mask.tobytes()
    c.poly([(-1,-1),(1,-1),(1,1)], (255,0,0), alpha=.3) # see-through paint
    c.line([(-2,3),(-3,3)], (0,0,0), .1) # off the canvas
    c.glow(.8, .8, .1, (1,1,1))
    assert c.mask.tobytes()==before
    c.mark = 0
    c.ribbon('0,-90 0,90', (.1,.1), (0,0,0))
    assert c.mask.getpixel((160,160))==0

def test_same_pictures_as_ever():
    "Results that users compare rest on these pictures: means of picture and mask, six seeds a class"
    have = [[np.mean([np.array(doodle(w, 64, s)[k]).mean() for s in range(6)]) for k in (0,1)] for w in class_names]
    was = [[148.5, 45.4], [144.4, 80.4], [113.6, 97.0], [131.3, 54.4], [148.6, 83.3], [150.4, 66.5], [144.3, 93.3], [151.4, 74.5], [161.3, 82.5], [151.1, 52.1]]
    close(np.array(have), np.array(was), eps=.5) # versions of Pillow may round differently

@pytest.mark.parametrize('w', class_names)
def test_seed_and_mask_of_each_class(w):
    a,b,c = doodle(w, 48, 3),doodle(w, 48, 3),doodle(w, 48, 4)
    assert [o.tobytes() for o in a]==[o.tobytes() for o in b]
    assert a[0].tobytes()!=c[0].tobytes()
    assert (a[0].size,a[0].mode,a[1].mode,set(a[1].tobytes()))==((48,48),'RGB','L',{0,255})
    assert np.array(doodle(w, 48, 5)[1]).mean()>10
    drawn = Doodle.kinds[w](48, 1)
    drawn.plain()
    with drawn.at(size=.85, mark=255): drawn.draw()
    assert .08<np.mean(np.array(drawn.mask)>0)<.8

def test_unknown_class(): fails(doodle, args=('tench',), contains="no doodle of 'tench'")

def test_bytes_for_any_number_of_processes(tmp_path):
    a,b,c,d = (doodles(tmp_path/f'{k}', 20, 10, 32, seed=s, n_workers=n) for k,(n,s) in enumerate([(0,1), (1,1), (3,1), (0,2)]))
    assert len(digest(a))==60
    assert digest(a)==digest(b)==digest(c)!=digest(d)

def test_counts_and_a_second_call(tmp_path):
    p = doodles(tmp_path/'p', 25, 13, 16, n_workers=0)
    assert [[len(list((p/m/s/w).iterdir())) for w in class_names] for m in ('','masks') for s in ('train','val')]==[[3]*5+[2]*5, [2]*3+[1]*7]*2
    t = (p/'doodles.json').stat().st_mtime_ns
    assert doodles(str(p), 25, 13, 16)==p and (p/'doodles.json').stat().st_mtime_ns==t
    (tmp_path/'empty').mkdir()
    assert len(digest(doodles(tmp_path/'empty', 10, 10, 16, n_workers=0)))==40

def test_nothing_of_the_readers_is_overwritten(tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/thesis.txt').write_text('years of work')
    p = doodles(tmp_path/'p', 10, 10, 16, n_workers=0)
    for args,says in (((tmp_path/'mine',), 'holds other files'), ((tmp_path/'mine/thesis.txt',), 'is a file'),
        ((tmp_path/'mine/thesis.txt/sub',), 'thesis.txt'), ((p, 20, 10, 16), 'name another folder')): fails(doodles, args=args, contains=says)
    assert (tmp_path/'mine/thesis.txt').read_text()=='years of work'

@pytest.mark.parametrize('bad', [dict(size=15), dict(n_train=9), dict(n_train=20.), dict(n_valid=True)], ids=str)
def test_numbers_that_make_no_data_set(tmp_path, bad):
    fails(lambda: doodles(tmp_path/'new', **bad), contains='is a whole number')
    assert not any(tmp_path.iterdir())

def test_the_folders_name(tmp_path, monkeypatch):
    monkeypatch.setenv('SCRATCHAI_HOME', str(tmp_path))
    assert doodles(n_train=10, n_valid=10, size=16, n_workers=0)==tmp_path/'data/doodles-2-10-10-16-42'

def test_after_torchs_threads_have_run(tmp_path):
    torch.rand(400,400)@torch.rand(400,400)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        doodles(tmp_path/'after', 20, 10, 16, n_workers=2)

def test_several_processes_at_once(tmp_path):
    ps = [mp.get_context('fork').Process(target=doodles, args=(tmp_path/'race', 30, 10, 16), kwargs=dict(n_workers=0)) for _ in range(3)]
    for p in ps: p.start()
    for p in ps: p.join()
    assert [p.exitcode for p in ps]==[0,0,0] and len(digest(tmp_path/'race'))==80
    assert [o.name for o in tmp_path.iterdir()]==['race']

def test_whole_or_not_there(tmp_path):
    "After `kill -9` amid the drawing there is no folder of that name, and the next call makes it"
    p = mp.get_context('fork').Process(target=doodles, args=(tmp_path/'p', 4000, 10, 64), kwargs=dict(n_workers=0))
    p.start()
    until(lambda: any(tmp_path.rglob('*.JPEG')))
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    assert not (tmp_path/'p').exists()
    assert len(digest(doodles(tmp_path/'p', 10, 10, 16, n_workers=0)))==40
