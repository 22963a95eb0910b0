"What the star import brings: the names that programs for fastai use, ours before the libraries'"
import importlib
from pathlib import Path

import fastcore.all,pytest

import scratchai.all as everything

modules = sorted(o.stem for o in (Path(__file__).parent.parent/'scratchai').glob('*.py') if o.stem not in ('__init__','_modidx','all','book'))

def test_names_of_ours_hide_those_of_fastcore_that_the_page_names():
    hidden = [o for o in everything.__all__ if getattr(everything, o) is not getattr(fastcore.all, o, getattr(everything, o))]
    assert set(hidden) <= {'Self','ProcessPoolExecutor','Canvas','to_float'}

@pytest.mark.parametrize('name', modules)
def test_no_name_of_a_chapter_is_another_thing_in_the_star_import(name):
    m = importlib.import_module(f'scratchai.{name}')
    assert not [o for o in m.__all__ if hasattr(everything, o) and getattr(everything, o) is not getattr(m, o)]

names = {'data':'DataBlock TransformBlock ImageBlock CategoryBlock MultiCategoryBlock RegressionBlock PointBlock MaskBlock BBoxBlock Transform ItemTransform DisplayedTransform Pipeline '
        'TfmdLists Datasets TfmdDL DataLoaders ImageDataLoaders SegmentationDataLoaders get_c folder_dls fastuple untar_data URLs download_images verify_images resize_images',
    'types':'PILImage PILImageBW PILMask TensorBase TensorImage TensorImageBW TensorMask TensorPoint TensorCategory TensorMultiCategory ToTensor IntToFloatTensor image2tensor',
    'labels':'parent_label RegexLabeller using_attr ColReader Categorize MultiCategorize OneHotEncode RegressionSetup CategoryMap',
    'splits':'RandomSplitter TrainTestSplitter GrandparentSplitter IndexSplitter MaskSplitter FuncSplitter FileSplitter ColSplitter RandomSubsetSplitter EndSplitter',
    'pictures':'Resize CropPad RandomCrop RandomResizedCrop FlipItem ResizeMethod PadMode Normalize imagenet_stats',
    'losses':'CrossEntropyLossFlat BCEWithLogitsLossFlat BCELossFlat MSELossFlat L1LossFlat LabelSmoothingCrossEntropy LabelSmoothingCrossEntropyFlat FocalLoss FocalLossFlat DiceLoss '
        'loss_activation loss_decodes',
    'networks':'models resnet18 resnet34 resnet50 resnet101 xresnet18 xresnet34 xresnet50 ResBlock ConvLayer simple_cnn Flatten',
    'small':'subplots to_cpu to_np find_device flatten_check first noop num_cpus show_image show_images L Path np plt torch nn F partial attrgetter Image Tensor tensor'}
@pytest.mark.parametrize('kind', names)
def test_names_that_programs_use(kind): assert not [o for o in names[kind].split() if o not in everything.__all__]

def test_pandas_where_it_is():
    pd = pytest.importorskip('pandas')
    assert everything.pd is pd and 'pd' in everything.__all__
