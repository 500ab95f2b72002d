// cumulet emulator -- go run .
//
// The standard library alone: what any program does that knows no more than the URL.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

var url = os.Getenv("CUMULET_EMULATOR_URL")

type object = map[string]any

func send(method, target, token string, body any) (*http.Response, object, error) {
	content, err := json.Marshal(body)
	if err != nil {
		return nil, nil, err
	}
	if body == nil {
		content = nil
	}
	request, err := http.NewRequest(method, target, bytes.NewReader(content))
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if token != "" {
		request.Header.Set("X-Auth-Token", token)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, nil, err
	}
	found := object{}
	if len(text) > 0 {
		err = json.Unmarshal(text, &found)
	}
	return answer, found, err
}

func emulator(method, path string, body any) object {
	answer, found, err := send(method, url+"/emulator"+path, "", body)
	if err != nil || answer.StatusCode >= 300 {
		log.Fatal(method, path, err, found)
	}
	return found
}

func logIn(name, password, project string) string {
	domain := object{"id": "default"}
	user := object{"name": name, "password": password, "domain": domain}
	body := object{"auth": object{
		"identity": object{"methods": []string{"password"}, "password": object{"user": user}},
		"scope":    object{"project": object{"name": project, "domain": domain}},
	}}
	answer, _, err := send("POST", url+"/identity/v3/auth/tokens", "", body)
	if err != nil || answer.StatusCode != 201 {
		log.Fatal("cannot log in", err)
	}
	return answer.Header.Get("X-Subject-Token")
}

// volumes is the program under test: it asks again when a connection is cut.
func volumes(token string) (int, error) {
	var last error
	for left := 3; left > 0; left-- {
		answer, _, err := send("GET", url+"/volume/v3/volumes", token, nil)
		if err == nil {
			return answer.StatusCode, nil
		}
		last = err
		time.Sleep(20 * time.Millisecond)
	}
	return 0, last
}

func expect(what string, got, wanted any) {
	if fmt.Sprint(got) != fmt.Sprint(wanted) {
		log.Fatalf("%s: %v, not %v", what, got, wanted)
	}
}

func main() {
	emulator("POST", "/reset", nil)
	token := logIn("demo", "secret", "demo")

	emulator("POST", "/faults", object{"drop": true, "service": "block-storage", "times": 2})
	status, err := volumes(token)
	expect("volumes over two cut connections", []any{status, err}, []any{200, nil})

	emulator("POST", "/faults", object{"fail": "volume"})
	body := object{"volume": object{"size": 1}}
	_, made, err := send("POST", url+"/volume/v3/volumes", token, body)
	if err != nil {
		log.Fatal(err)
	}
	emulator("POST", "/settle", nil)
	id := made["volume"].(object)["id"].(string)
	_, shown, err := send("GET", url+"/volume/v3/volumes/"+id, token, nil)
	if err != nil {
		log.Fatal(err)
	}
	expect("the volume", shown["volume"].(object)["status"], "error")

	emulator("POST", "/clock", object{"advance": 2 * 86400})
	answer, _, err := send("GET", url+"/volume/v3/volumes", token, nil)
	if err != nil {
		log.Fatal(err)
	}
	expect("a token two days later", answer.StatusCode, 401)
	fmt.Println("all is well")
}
