"What `from scratchai.book import *` brings: libraries or a sentence, plots, stand-ins for pictures"
import json

import matplotlib.pyplot as plt,numpy as np,pytest,torch
from PIL import Image

import scratchai.all,scratchai.book as book

def test_it_brings_all_of_all_and_no_private_name():
    assert {*scratchai.all.__all__} <= {*book.__all__} and not [o for o in book.__all__ if o.startswith('_')]
    for o in 'pd plt np widgets gv mpl plot_function setup_book image_cat image_bear get_image_files_sorted search_images_ddg search_images_bing'.split(): assert o in book.__all__

def test_missing_modules_say_what_to_install():
    note = book.module_or_note('pet', 'no_such_module', 'petshop')
    with pytest.raises(ImportError, match='`pet.feed` needs petshop, which is not here: pip install petshop'): note.feed('cat')
    assert not hasattr(note, '_repr_html_') # what Jupyter asks before it shows a thing
    assert book.module_or_note('js', 'json') is json

def test_gv(monkeypatch):
    class Graphs:
        @staticmethod
        def Source(s): return s
    monkeypatch.setattr(book, 'graphviz', Graphs)
    assert book.gv('a->b; b->c').split()==['digraph', 'G{', 'rankdir="LR"', 'a->b;', 'b->c', '}']
    monkeypatch.setattr(book, 'graphviz', book.NotInstalled('graphviz', 'graphviz'))
    with pytest.raises(ImportError, match='pip install graphviz'): book.gv('a->b')

def test_plot_function():
    book.plot_function(torch.sin, 'x', 'y', 'a sine', min=-1, max=3, figsize=(3,2), steps=5)
    ax,fig = plt.gca(),plt.gcf()
    xs,ys = ax.lines[0].get_data()
    assert np.allclose(xs, [-1,0,1,2,3]) and np.allclose(ys, np.sin(xs))
    assert (ax.get_xlabel(),ax.get_ylabel(),ax.get_title(),tuple(fig.get_size_inches()))==('x','y','a sine',(3,2))
    book.plot_function(abs)
    ax = plt.gca()
    assert (ax.get_xlabel(),ax.get_title(),ax.lines[0].get_xdata()[[0,-1]].tolist())==('','',[-2,2])
    plt.close('all')

@pytest.mark.parametrize('f', [book.image_cat, book.image_bear])
def test_pictures(f, tmp_path, monkeypatch):
    monkeypatch.setenv('SCRATCHAI_HOME', str(tmp_path))
    file = f()
    assert file.is_relative_to(tmp_path) and Image.open(file).size==(192,192) and f()==file

def test_sorted_files(tmp_path):
    for o in ('b/1.jpg','a/2.jpg','a/1.jpg'):
        (tmp_path/o).parent.mkdir(exist_ok=True)
        Image.new('RGB', (2,2)).save(tmp_path/o)
    assert [str(o.relative_to(tmp_path)) for o in book.get_image_files_sorted(tmp_path)]==['a/1.jpg','a/2.jpg','b/1.jpg']
    assert len(book.get_image_files_sorted(tmp_path, folders=['b']))==1 and not book.get_image_files_sorted(tmp_path, recurse=False)

def test_no_search_engine():
    with pytest.raises(RuntimeError, match="pictures of 'bear'.*download_images"): book.search_images_ddg('bear', max_images=10)
    with pytest.raises(RuntimeError, match="pictures of 'bear'"): book.search_images_bing('key', 'bear', min_sz=128)

def test_setup_book(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', False)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    kept,options = np.get_printoptions(),{}
    class Pandas:
        @staticmethod
        def set_option(k, v): options[k] = v
    monkeypatch.setattr(book, 'pd', Pandas)
    try:
        with plt.rc_context():
            book.setup_book(7)
            a = torch.rand(3)
            assert plt.rcParams['font.size']==12
        torch.manual_seed(7)
        assert (a==torch.rand(3)).all() and np.get_printoptions()['linewidth']==200 and options=={'display.max_columns':999}
        monkeypatch.setattr(book, 'pd', book.NotInstalled('pd', 'pandas'))
        book.setup_book()
        torch.manual_seed(42)
    finally:
        np.set_printoptions(**{k:v for k,v in kept.items() if k in ('linewidth',)})
        torch.set_printoptions(profile='default')
