#!/usr/bin/env bash
# Starts what a head serves beside Ray: PostgreSQL, and MLflow's server on it. Safe to run again.
#
#   head.sh ARTIFACTS       s3://BUCKET/PREFIX, or a folder that outlives this machine
#
# PostgreSQL listens on a socket in a folder that only this user can enter, so it needs no password.
# MLflow's passwords are made here, once, and stay in files that only this user can read:
# ~/.transfer-search/mlflow_admin (the account admin) and ~/.mlflow/credentials (the account of searches).
set -euo pipefail
umask 077
artifacts=$1
. "$(dirname "$0")/environment.sh"
state=~/.transfer-search
databases=$POSTGRESQL_SOCKET/data
export PGHOST=$POSTGRESQL_SOCKET PGUSER="$(id -un)" PGDATABASE=postgres
for bin in /usr/lib/postgresql/*/bin; do PATH="$bin:$PATH"; done

mkdir -p "$state" "$POSTGRESQL_SOCKET" ~/.mlflow
[ -s "$databases/PG_VERSION" ] || initdb -D "$databases" --auth=peer --encoding=UTF8 > /dev/null
if ! pg_ctl -D "$databases" status > /dev/null; then
  pg_ctl -D "$databases" -l "$state/postgresql.log" -w start > /dev/null \
    -o "-c listen_addresses='' -c unix_socket_directories='$POSTGRESQL_SOCKET' -c max_connections=200"
fi
for database in searches mlflow mlflow_auth; do
  psql -tAc "SELECT 1 FROM pg_database WHERE datname = '$database'" | grep -q 1 || createdb "$database"
done

random() { python -c 'import secrets; print(secrets.token_hex(24))'; }
[ -s "$state/mlflow_admin" ] || random > "$state/mlflow_admin"
[ -s "$state/mlflow_session_key" ] || random > "$state/mlflow_session_key"
[ -s ~/.mlflow/credentials ] || printf \
  '[mlflow]\nmlflow_tracking_username = searches\nmlflow_tracking_password = %s\n' "$(random)" > ~/.mlflow/credentials
cat > "$state/mlflow_auth.ini" <<INI
[mlflow]
default_permission = READ
database_uri = postgresql+psycopg:///mlflow_auth?host=$POSTGRESQL_SOCKET
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI

healthy() { python - <<'PY'
import urllib.request
urllib.request.urlopen("http://127.0.0.1:5000/health", timeout=2)
PY
}
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false    # eight more processes of 240 MB, of no use to searches
if ! healthy 2> /dev/null; then
  MLFLOW_AUTH_CONFIG_PATH="$state/mlflow_auth.ini" \
  MLFLOW_AUTH_ADMIN_PASSWORD="$(cat "$state/mlflow_admin")" \
  MLFLOW_FLASK_SERVER_SECRET_KEY="$(cat "$state/mlflow_session_key")" \
  setsid nohup mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 2 \
    --backend-store-uri "postgresql+psycopg:///mlflow?host=$POSTGRESQL_SOCKET" \
    --artifacts-destination "$artifacts" --serve-artifacts \
    >> "$state/mlflow.log" 2>&1 < /dev/null &
  for _ in $(seq 120); do healthy 2> /dev/null && break; sleep 1; done
  healthy || { tail -n 20 "$state/mlflow.log" >&2; echo "MLflow's server did not start" >&2; exit 1; }
fi

# The account that drivers write with: what it makes is its own, and it may not touch other people's.
MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD="$(cat "$state/mlflow_admin")" python - <<'PY'
import configparser
import pathlib

from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

kept = configparser.ConfigParser(interpolation=None)
kept.read(pathlib.Path.home() / ".mlflow" / "credentials")
name, password = (kept["mlflow"][f"mlflow_tracking_{key}"] for key in ("username", "password"))
accounts = get_app_client("basic-auth", tracking_uri="http://127.0.0.1:5000")
try:
    accounts.create_user(name, password)
except MlflowException as error:
    if error.error_code != "RESOURCE_ALREADY_EXISTS":
        raise
PY
