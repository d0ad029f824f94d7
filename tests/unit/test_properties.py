"""What holds by definition, for any numbers: hypothesis looks for the ones for which it does not."""

import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from asmnet_tf import files
from asmnet_tf.config import CROPS
from asmnet_tf.data import annotations, geometry, pose, sidecars
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation import metrics, predictions
from asmnet_tf.evaluation.records import Faces, Method
from asmnet_tf.files import plain
from asmnet_tf.formats import release_pca
from asmnet_tf.network import loss
from asmnet_tf.shape import shape_model

quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
SPECS = st.sampled_from([DATASETS[name] for name in ("300w", "wflw", "cofw")])


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_subnormal=False)


def array(shape, low: float, high: float) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, shape, elements=numbers(low, high), fill=st.nothing())


FRAMES = st.builds(lambda c, s: np.array([*c, *s]), array(2, -1e3, 1e3), array(2, 1e-2, 1e3))
# a map that can be inverted: turned, scaled and moved
AFFINES = st.builds(
    lambda angle, scale, shift: np.array(
        [
            [scale * np.cos(angle), -scale * np.sin(angle), shift[0]],
            [scale * np.sin(angle), scale * np.cos(angle), shift[1]],
        ]
    ),
    numbers(-np.pi, np.pi),
    numbers(0.05, 20),
    array(2, -1e3, 1e3),
)

# --- geometry ---------------------------------------------------------------------------------------------------------


@quick
@given(array((5, 7, 2), -1e4, 1e4), FRAMES)
def test_network_units_and_back(landmarks, frame):
    back = geometry.denormalise(geometry.normalise(landmarks, frame), frame)
    np.testing.assert_allclose(back, landmarks, atol=1e-8)


@quick
@given(array((9, 2), -1e3, 1e3), FRAMES, st.integers(1, 512))
def test_crop_pixels_and_network_units_name_the_same_points(points, frame, size):
    """Network units of crop pixel q are (q - (size - 1) / 2) / size."""
    pixels = geometry.transform(geometry.invert(geometry.crop_to_image(frame, size)), points)
    norm = geometry.normalise(points, frame).reshape(-1, 2)
    np.testing.assert_allclose((pixels - (size - 1) / 2) / size, norm, atol=1e-6 * max(1, np.abs(norm).max()))


@quick
@given(AFFINES, AFFINES, array((6, 2), -1e3, 1e3))
def test_affine_maps_compose_and_invert(first, second, points):
    together = geometry.transform(geometry.compose(second, first), points)
    np.testing.assert_allclose(together, geometry.transform(second, geometry.transform(first, points)), atol=1e-6)
    np.testing.assert_allclose(
        geometry.transform(geometry.invert(first), geometry.transform(first, points)), points, atol=1e-6
    )


@quick
@given(SPECS, st.integers(0, 9999))
def test_a_mirror_image_of_a_mirror_image(spec, seed):
    shapes = shapes_of(spec, seed, 0.3).reshape(3, -1)
    mirrored = geometry.flip_landmarks(shapes, spec.flip_map)
    assert np.array_equal(geometry.flip_landmarks(mirrored, spec.flip_map), shapes)
    assert np.array_equal(np.sort(-mirrored[:, ::2]), np.sort(shapes[:, ::2]))


@quick
@given(array((4, 6, 2), -1e3, 1e3), st.sampled_from(CROPS), numbers(1, 3))
def test_a_crop_frame_holds_its_box(landmarks, crop, scale):
    box = geometry.landmark_box(landmarks)
    frame = geometry.crop_frame(box, crop, scale)
    norm = geometry.normalise(landmarks, frame)
    assert np.abs(norm).max() <= 0.5 + 1e-6
    if crop == "square":
        assert np.array_equal(frame[:, 2], frame[:, 3])


@quick
@given(FRAMES, st.integers(1, 40), st.integers(1, 40), st.integers(1, 64), numbers(1, 2))
def test_a_patch_lies_in_its_image_wherever_the_face_is(frame, height, width, size, margin):
    image = np.zeros((height, width, 3), np.uint8)
    patch = geometry.cut_patch(image, frame, size, margin)
    assert 1 <= patch.pixels.shape[0] <= height
    assert 1 <= patch.pixels.shape[1] <= width
    corners = np.array([[-0.5, -0.5], [patch.pixels.shape[1] - 0.5, patch.pixels.shape[0] - 0.5]])
    in_image = geometry.transform(geometry.invert(patch.image_to_patch), corners)
    assert (in_image >= -0.5 - 1e-6).all()
    assert (in_image <= np.array([width, height]) - 0.5 + 1e-6).all()


@quick
@given(array((5, 3), -89, 89))
def test_angles_to_a_rotation_and_back(angles):
    rotations = pose.angles_to_matrix(angles)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-9
    )
    np.testing.assert_allclose(pose.matrix_to_angles(rotations), angles, atol=1e-6)


# --- metrics ----------------------------------------------------------------------------------------------------------

ERRORS = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 2) | st.sampled_from([np.nan, np.inf, 0.08]))


def shapes_of(spec, seed: int, scale: float) -> np.ndarray:
    """Three faces' landmarks; drawing each number by itself would take hypothesis half a minute."""
    return np.random.default_rng(seed).normal(0, scale, (3, spec.num_landmarks, 2))


def faces(spec, data) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = (shapes_of(spec, data.draw(st.integers(0, 9999)), data.draw(numbers(1, 300))) for _ in range(2))
    assume(
        np.linalg.norm(truth[:, spec.outer_eye_corners[0]] - truth[:, spec.outer_eye_corners[1]], axis=1).min() > 0.1
    )
    return truth, predicted


@quick
@given(SPECS, AFFINES, st.data())
def test_nme_stays_when_both_faces_are_moved_turned_and_scaled(spec, affine, data):
    truth, predicted = faces(spec, data)
    before = metrics.nme(predicted, truth, metrics.normaliser(truth, spec))
    moved_truth, moved = geometry.transform(affine, truth), geometry.transform(affine, predicted)
    np.testing.assert_allclose(
        metrics.nme(moved, moved_truth, metrics.normaliser(moved_truth, spec)), before, rtol=1e-6, atol=1e-9
    )
    assert (metrics.nme(truth, truth, metrics.normaliser(truth, spec)) == 0).all()


@quick
@given(SPECS, numbers(0, 50), st.data())
def test_nme_grows_with_the_error_and_is_the_mean_of_the_points(spec, factor, data):
    truth, predicted = faces(spec, data)
    lengths = metrics.normaliser(truth, spec)
    once = metrics.nme(predicted, truth, lengths)
    np.testing.assert_allclose(
        metrics.nme(truth + factor * (predicted - truth), truth, lengths), factor * once, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(metrics.point_errors(predicted, truth, lengths).mean(axis=1), once)


@quick
@given(ERRORS, numbers(0.01, 1), numbers(0.01, 1))
def test_auc_and_failure_rate_keep_their_bounds(errors, low, high):
    low, high = sorted((low, high))
    assert 0 <= metrics.gains(errors, low).mean() <= metrics.gains(errors, high).mean() <= 1
    assert 0 <= metrics.failures(errors, high).mean() <= metrics.failures(errors, low).mean() <= 1
    assert metrics.gains(errors, low).mean() <= 1 - metrics.failures(errors, low).mean() + 1e-12
    assert metrics.gains(np.zeros(len(errors)), low).mean() == 1
    steps = np.linspace(0, low, 2001)
    assert abs(metrics.ced(errors, steps).mean() - metrics.gains(errors, low).mean()) < 2e-3
    assert np.all(np.diff(metrics.ced(errors, steps)) >= 0)


@quick
@given(array((4, 3), -720, 720), array((4, 3), -720, 720), st.integers(-2, 2))
def test_pose_errors_go_the_short_way_round(a, b, turns):
    errors = metrics.pose_errors(a, b)
    assert errors.min() >= 0
    assert errors.max() <= 180
    np.testing.assert_allclose(metrics.pose_errors(b, a), errors, atol=1e-9)
    np.testing.assert_allclose(
        np.cos(np.radians(metrics.pose_errors(a + 360 * turns, b))), np.cos(np.radians(errors)), atol=1e-9
    )


@settings(quick, max_examples=10)
@given(arrays(np.float64, st.integers(2, 30), elements=numbers(-5, 5)))
def test_a_bootstrap_interval_lies_among_its_values(values):
    low, high = metrics.bootstrap_interval(values)
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9


# --- shape model ------------------------------------------------------------------------------------------------------

SHAPES = st.builds(
    lambda seed, points, count: (
        np.random.default_rng(seed).normal(0, 0.1, (count, 2 * points)) + np.linspace(-0.4, 0.4, 2 * points)
    ),
    st.integers(0, 10_000),
    st.integers(1, 8),
    st.integers(3, 30),
)


def fitted(shapes: np.ndarray, percent: float) -> shape_model.ShapeModel:
    return shape_model.ShapeModel.fit(shapes, "300w", "square", 1.2).keep(percent)


@quick
@given(SHAPES, numbers(1, 100), numbers(0, 30))
def test_the_asm_operator_projects(shapes, percent, exaggerated):
    """Twice is once, and no parameter is beyond three standard deviations."""
    model = fitted(shapes, percent)
    once = model.smooth(model.mean_shape + exaggerated * (shapes - model.mean_shape))
    np.testing.assert_allclose(model.smooth(once), once, atol=1e-7)
    assert (np.abs(model.project(once)) <= 3 * np.sqrt(model.eigenvalues) + 1e-7).all()
    np.testing.assert_allclose(model.smooth(model.mean_shape), model.mean_shape, atol=1e-12)


@quick
@given(SHAPES)
def test_all_components_keep_a_training_shape(shapes):
    model = fitted(shapes, 100.0)
    np.testing.assert_allclose(model.instance(model.project(shapes)), shapes, atol=1e-7)
    np.testing.assert_allclose(model.eigenvectors.T @ model.eigenvectors, np.eye(model.num_components), atol=1e-9)


@quick
@given(SHAPES, st.sampled_from(shape_model.UNITS))
def test_a_shape_model_through_a_file_and_other_units(shapes, units):
    model = fitted(shapes, 90.0)
    back = release_pca.to_units(release_pca.to_units(model, units))
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "a.npz")
        read = shape_model.ShapeModel.load(Path(folder) / "a.npz")
    for name in ("mean_shape", "eigenvectors", "eigenvalues"):
        assert np.array_equal(getattr(read, name), getattr(model, name))
        np.testing.assert_allclose(getattr(back, name), getattr(model, name), atol=1e-9)
    assert (read.dataset, read.crop, read.crop_scale, read.units) == ("300w", "square", 1.2, "network")


# --- files ------------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=("Cc", "Cs")), min_size=1)


@quick
@given(array((68, 2), -9e5, 9e5), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_pts_round_trip(points, header, end):
    rows = [f"{x!r} {y!r}" for x, y in points.tolist()]
    lines = ["version: 1", "n_points: 68", "{", *rows, "}"] if header else rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pts"
        path.write_bytes((end.join(lines) + end).encode())
        assert np.array_equal(annotations.read_pts(path, 68), points - 1)


@quick
@given(st.lists(NAMES, min_size=1, max_size=6), st.booleans(), st.booleans(), st.data())
def test_prediction_file_round_trip(names, with_pose, with_truth, data):
    landmarks = data.draw(
        arrays(np.float64, (len(names), 68, 2), elements=numbers(-9e5, 9e5) | st.just(np.nan), fill=st.just(1.0))
    )
    angles = np.full((len(names), 3), 7.0) if with_pose else None
    truth = np.zeros((len(names), 68, 2)) if with_truth else None
    with tempfile.TemporaryDirectory() as folder:
        faces = Faces(DATASETS["300w"], names, truth)
        predictions.save_predictions(Path(folder), [Method("a", landmarks, angles)], faces)
        read = predictions.read_predictions(Path(folder) / "a.npz")
    assert read.names == names
    for ours, theirs in ((landmarks, read.landmarks), (angles, read.pose), (truth, read.landmarks_gt)):
        assert (ours is None) == (theirs is None)
        assert ours is None or np.array_equal(ours, theirs, equal_nan=True)


@quick
@given(st.lists(NAMES, min_size=1, max_size=8, unique=True), st.randoms(use_true_random=False))
def test_names_find_their_rows_in_any_order(names, random):
    names = [f"helen/{i}_{name}x" for i, name in enumerate(names)]
    given_names = random.sample(names, len(names))
    assert [given_names[row] for row in annotations.match_names(names, given_names)] == names
    with_endings = [f"{name}.jpg" for name in given_names]
    assert [given_names[row] for row in annotations.match_names(names, with_endings)] == names


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | numbers(-1e300, 1e300) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@quick
@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_sidecar_round_trip(sidecar):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "best.keras"
        files.write_text(sidecars.sidecar_path(path), json.dumps(plain(sidecar)))
        assert sidecars.read_sidecar(path) == sidecar


@quick
@given(st.text(max_size=3000))
def test_an_error_is_one_printable_line(text):
    error = files.InputError(f"a.pts: {text}")
    assert str(error).isprintable()
    assert len(str(error)) <= 1000
    assert str(error).startswith("a.pts: ")


# --- schedules and splits ---------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 500), st.lists(numbers(0, 5), min_size=3, max_size=3))
def test_alpha_goes_through_its_three_values_in_thirds(length, alphas):
    seen = [loss.alpha_at(epoch, length, tuple(alphas)) for epoch in range(length)]
    firsts = [sum(3 * epoch < (k + 1) * length for epoch in range(length)) for k in range(3)]
    expected = [alphas[0]] * firsts[0] + [alphas[1]] * (firsts[1] - firsts[0]) + [alphas[2]] * (length - firsts[1])
    assert seen == expected
    assert abs(firsts[0] - length / 3) < 1
    assert loss.alpha_at(length + 7, length, tuple(alphas)) == alphas[2]


@quick
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 4)), min_size=2, unique=True), numbers(0, 0.99))
def test_held_out_faces_are_whole_photographs_whoever_else_is_there(faces, fraction):
    point = np.zeros((1, 2), np.float32)
    names = [f"helen/trainset/{10_000 + photograph}_{face}" for photograph, face in faces]
    samples = [annotations.Sample(name, Path("a"), point, np.zeros(4), frozenset()) for name in names]
    train, held = annotations.hold_out(samples, fraction)
    assert sorted(id(s) for s in (*train, *held)) == sorted(map(id, samples))
    if len({photograph for photograph, _ in faces}) > 1:
        assert not {annotations.photograph(s.name) for s in train} & {annotations.photograph(s.name) for s in held}
    assert bool(held) == (fraction > 0)
    without = [s for s in samples if s is not train[0]] if train else samples
    if len(held) > 1 and len({annotations.photograph(s.name) for s in without}) > 1:
        assert annotations.hold_out(without, fraction)[1] == held


@quick
@given(array((6, 3), -200, 200))
def test_pose_units_clip_and_come_back(angles):
    unit = pose.angles_to_unit(angles)
    assert np.abs(unit).max() <= 1
    np.testing.assert_allclose(pose.unit_to_angles(unit), np.clip(angles, -65, 65), atol=1e-9)
