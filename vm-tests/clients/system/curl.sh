# curl, as its users call it: $1 is the version of HTTP, $2 the case.
set -e
api=https://api.clients.example
case $2 in
read) curl -sS "$1" -H 'Authorization: Bearer placeholder' $api/v1/things/42 ;;
write) curl -sS "$1" -H 'Authorization: Bearer placeholder' --json '{"note":"juniper"}' -w '\n%{http_code}\n' $api/v1/orders ;;
stream) curl -sSN "$1" -H 'Authorization: Bearer placeholder' $api/v1/events ;;
esac
