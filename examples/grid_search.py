"""Grid search: which prior suits a hundred digits, by cross-validation?

The prior inclusion probability and the coupling of masks are searched over with scikit-learn, and the best classifier
is compared with others on images that were not used. What to look at: do the settings differ by more than the standard
errors between folds?

    python examples/grid_search.py
"""

import argparse

import pandas as pd
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.svm import SVC

import pyro_isingvit as iv

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--train", type=int, default=100)
parser.add_argument("--test", type=int, default=1000)
parser.add_argument("--folds", type=int, default=3)
parser.add_argument("--inclusion", type=float, nargs="+", default=[0.1, 0.3, 0.6])
parser.add_argument("--coupling", type=float, nargs="+", default=[0.0, 1.0])
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(
    X, y, train_size=options.train, test_size=options.test, stratify=y, random_state=options.seed
)

classifier = iv.IsingClassifier(
    patch_size=4,
    steps=options.steps,
    temperature=5e-4,
    augment="digits",
    validation_fraction=0,  # the temperature is given, and folds are small
    device="cpu",
    random_state=options.seed,
)
grid = {"inclusion": options.inclusion, "coupling": options.coupling}
search = GridSearchCV(classifier, grid, cv=options.folds, scoring="neg_log_loss").fit(X, y)
found = pd.DataFrame(search.cv_results_)
table = found[["param_inclusion", "param_coupling"]].set_axis(["inclusion", "coupling"], axis=1)
spread = found["std_test_score"] / options.folds**0.5
table = table.assign(nll=-found["mean_test_score"], se=spread)
print(table.sort_values("nll").round(3).to_string(index=False))
print(f"best: {search.best_params_}, NLL {-search.best_score_:.3f} over {options.folds} folds")

best = search.best_estimator_
print(f"weights kept: {best.posterior_.densities()['median_density']:.0%}")
others = {"logistic regression": LogisticRegression(max_iter=5000), "support vectors": SVC()}
each = {"ising": best} | {name: other.fit(X, y) for name, other in others.items()}
scores = [f"{name} {fitted.score(X_test, y_test):.1%}" for name, fitted in each.items()]
print("accuracy on the rest:", ", ".join(scores))
