<?php
// PHP's curl extension.
function call(string $path, array $options = []): int
{
    $curl = curl_init('https://api.clients.example' . $path);
    curl_setopt_array($curl, $options + [
        CURLOPT_HTTPHEADER => ['Authorization: Bearer placeholder', 'Content-Type: application/json'],
        CURLOPT_WRITEFUNCTION => function ($curl, string $piece): int {
            echo $piece, "\n";
            flush();
            return strlen($piece);
        },
    ]);
    if (curl_exec($curl) === false) {
        fwrite(STDERR, curl_error($curl) . "\n");
        exit(1);
    }
    return curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
}

switch (end($argv)) {
    case 'read':
        call('/v1/things/42');
        break;
    case 'write':
        echo call('/v1/orders', [CURLOPT_POSTFIELDS => json_encode(['note' => 'juniper'])]), "\n";
        break;
    default:
        call('/v1/events');
}
