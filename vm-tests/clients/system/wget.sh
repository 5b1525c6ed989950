# GNU wget: $1 is the case.
set -e
api=https://api.clients.example
case $1 in
read) wget -q -O - --header 'Authorization: Bearer placeholder' $api/v1/things/42 ;;
write) wget -nv -O - --content-on-error --header 'Authorization: Bearer placeholder' --header 'Content-Type: application/json' --post-data '{"note":"juniper"}' $api/v1/orders ;;
stream) wget -q -O - --header 'Authorization: Bearer placeholder' $api/v1/events ;;
esac
