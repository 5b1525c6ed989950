// Go's net/http, which speaks HTTP/2 by itself.
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
)

const api = "https://api.clients.example"

func call(method, path, body string) *http.Response {
	request, err := http.NewRequest(method, api+path, strings.NewReader(body))
	if body == "" {
		request, err = http.NewRequest(method, api+path, nil)
	}
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer placeholder")
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	return answer
}

func show(answer *http.Response) {
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Status, string(text))
}

func main() {
	switch os.Args[1] {
	case "read":
		show(call("GET", "/v1/things/42", ""))
	case "write":
		show(call("POST", "/v1/orders", `{"note":"juniper"}`))
	case "stream":
		lines := bufio.NewScanner(call("GET", "/v1/events", "").Body)
		for lines.Scan() {
			fmt.Println(lines.Text())
		}
	}
}
