"""A logistic regression, for tests that nothing can be told at a glance."""

import numpy as np
from scipy.optimize import minimize


def accuracy_of_logistic_regression(train_PF, train_P, test_PF, test_P):
    """Share of test items that a logistic regression with intercept, trained on the others, gets right."""
    mean_F, spread_F = train_PF.mean(axis=0), np.maximum(train_PF.std(axis=0), 1e-9)
    train_PF, test_PF = ((x_PF - mean_F) / spread_F for x_PF in (train_PF, test_PF))
    sign_P = 2 * train_P - 1

    def loss(weight):
        margin_P = sign_P * (train_PF @ weight[1:] + weight[0])
        pull_P = -sign_P * np.exp(-np.logaddexp(0, margin_P))
        gradient = np.append(pull_P.mean(), pull_P @ train_PF / len(train_P))
        return np.logaddexp(0, -margin_P).mean() + 1e-4 * weight @ weight, gradient + 2e-4 * weight

    fitted = minimize(loss, np.zeros(train_PF.shape[1] + 1), jac=True, method="L-BFGS-B")
    assert fitted.success
    return ((test_PF @ fitted.x[1:] + fitted.x[0] > 0) == test_P).mean()
