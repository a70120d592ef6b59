"""The mlflow logger: a run in MLflow. See `skyrl_mlflow.plugin`."""
