# What every node of a cluster has in its environment; sourced from ~/.bashrc. A value that is set stays.
export PATH="$HOME/.transfer-search/venv/bin:$PATH"
export RAY_AUTH_MODE=token                     # the token itself is in ~/.ray/auth_token
export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"
export TRANSFER_SEARCH_HOME="${TRANSFER_SEARCH_HOME:-/mnt/searches}"

# For specs that say `storage: ${TRANSFER_SEARCH_STORAGE}` and `tracking: {uri: "${MLFLOW_TRACKING_URI}"}`.
# Both are for the driver alone, and that runs on the head.
export POSTGRESQL_SOCKET="${POSTGRESQL_SOCKET:-$HOME/.transfer-search/postgresql}"
export TRANSFER_SEARCH_STORAGE="${TRANSFER_SEARCH_STORAGE:-postgresql+psycopg:///searches?host=$POSTGRESQL_SOCKET}"
export MLFLOW_TRACKING_URI="${MLFLOW_TRACKING_URI:-http://127.0.0.1:5000}"
