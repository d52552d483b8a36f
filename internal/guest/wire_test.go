package guest_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// What SDKs really send, byte for byte where it matters, and what they need back.

// envelope wraps a message of a stream.
func envelope(message string) string {
	var b bytes.Buffer
	b.WriteByte(0)
	binary.Write(&b, binary.BigEndian, uint32(len(message)))
	b.WriteString(message)
	return b.String()
}

// envelopes splits the body of a stream into "FLAGS JSON", with the JSON in its shortest form.
func envelopes(t *testing.T, body string) []string {
	t.Helper()
	var out []string
	for body != "" {
		if len(body) < 5 {
			t.Fatalf("half an envelope: %q", body)
		}
		n := int(binary.BigEndian.Uint32([]byte(body[1:5])))
		if len(body) < 5+n {
			t.Fatalf("envelope of %d bytes in %q", n, body)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, []byte(body[5:5+n])); err != nil {
			t.Fatalf("%q: %v", body[5:5+n], err)
		}
		out = append(out, fmt.Sprintf("%d %s", body[0], compact.String()))
		body = body[5+n:]
	}
	return out
}

// stream sends a recorded streaming call.
func (a *agent) stream(t *testing.T, path, message string, header ...string) []string {
	t.Helper()
	status, h, body := a.do(t, "POST", path, strings.NewReader(envelope(message)),
		append([]string{"Content-Type", "application/connect+json", "Connect-Protocol-Version", "1", "Keepalive-Ping-Interval", "50"}, header...)...)
	if status != 200 || h.Get("Content-Type") != "application/connect+json" {
		t.Fatalf("%s: %d %v %s", path, status, h, body)
	}
	return envelopes(t, body)
}

func (a *agent) unary(t *testing.T, path, message string, header ...string) (int, string) {
	t.Helper()
	status, _, body := a.do(t, "POST", path, strings.NewReader(message),
		append([]string{"Content-Type", "application/json", "Content-Encoding", "identity", "Connect-Protocol-Version", "1"}, header...)...)
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(body)); err != nil {
		t.Fatalf("%s: %d %q is not JSON", path, status, body)
	}
	return status, compact.String()
}

var pidPattern = regexp.MustCompile(`"pid":\d+`)

func TestRecordedStart(t *testing.T) {
	a := start(t)
	got := a.stream(t, "/process.Process/Start", `{"process":{"cmd":"/bin/bash","args":["-c","echo hi"],"envs":{"A":"B"},"cwd":"/tmp"},"stdin":false}`, "Authorization", "Basic cm9vdDo=", "Connect-Timeout-Ms", "60000")
	want := []string{
		`0 {"event":{"start":{"pid":0}}}`, `0 {"event":{"data":{"stdout":"aGkK"}}}`,
		`0 {"event":{"end":{"exited":true,"status":"exit status 0"}}}`, `2 {}`,
	}
	for i := range got {
		got[i] = pidPattern.ReplaceAllString(got[i], `"pid":0`)
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	got = a.stream(t, "/process.Process/Start", `{"process":{"cmd":"/bin/sh","args":["-c","exit 7"]},"unknownField":[1]}`, "Authorization", "Basic cm9vdDo=")
	if got[1] != `0 {"event":{"end":{"exitCode":7,"exited":true,"status":"exit status 7","error":"exit status 7"}}}` {
		t.Errorf("%v", got)
	}
}

func TestRecordedErrors(t *testing.T) {
	a := start(t)
	root := []string{"Authorization", "Basic cm9vdDo="}
	for message, want := range map[string]string{
		`{"process":{"cmd":"ls","cwd":"/no/such"}}`: `2 {"error":{"code":"invalid_argument","message":"cwd '/no/such' does not exist"}}`,
		`{"process":{"cmd":"nosuchcommand"}}`:       `2 {"error":{"code":"not_found","message":"command 'nosuchcommand' not found in PATH"}}`,
		`{}`:                                        `2 {"error":{"code":"invalid_argument","message":"no command given"}}`,
		`{"process":{"cmd":"ls"},"pty":{"size":{"cols":99999999}}}`: `"code":"invalid_argument"`,
		`{"process":{"cmd":7}}`: `"code":"invalid_argument"`,
		`{"process":`:           `"code":"invalid_argument"`,
		`[]`:                    `"code":"invalid_argument"`,
		`null`:                  `"code":"invalid_argument"`,
		``:                      `"code":"invalid_argument"`,
	} {
		if got := a.stream(t, "/process.Process/Start", message, root...); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("%s: %v", message, got)
		}
	}
	if got := a.stream(t, "/process.Process/Start", `{"process":{"cmd":"ls"}}`, "Authorization", "Basic cm9vdDEyMzo="); got[0] != `2 {"error":{"code":"unauthenticated","message":"invalid username: 'root123'"}}` {
		t.Errorf("%v", got)
	}
	if got := a.stream(t, "/process.Process/Start", `{"process":{"cmd":"ls"}}`, "Authorization", "Bearer x"); !strings.Contains(got[0], `"code":"unauthenticated"`) {
		t.Errorf("%v", got)
	}
	if got := a.stream(t, "/process.Process/Connect", `{"process":{"pid":4000000}}`); got[0] != `2 {"error":{"code":"not_found","message":"process with pid 4000000 not found"}}` {
		t.Errorf("%v", got)
	}
	if got := a.stream(t, "/process.Process/Start", `{"process":{"cmd":"sleep","args":["100"]}}`, append(root, "Connect-Timeout-Ms", "100")...); len(got) != 2 || !strings.Contains(got[1], `"code":"deadline_exceeded"`) {
		t.Errorf("%v", got)
	}
	for _, c := range []struct {
		path, message string
		status        int
		code          string
	}{
		{"/process.Process/SendSignal", `{"process":{"pid":4000000},"signal":"SIGNAL_SIGKILL"}`, 404, "not_found"},
		{"/process.Process/SendSignal", `{"process":{"pid":4000000},"signal":9}`, 404, "not_found"},
		{"/process.Process/SendSignal", `{"process":{"pid":1},"signal":"SIGNAL_SIGKILL"}`, 404, "not_found"},
		{"/process.Process/SendSignal", `{"process":{"pid":1},"signal":"SIGKILL"}`, 400, "invalid_argument"},
		{"/process.Process/SendSignal", `{"process":{"pid":-1},"signal":9}`, 400, "invalid_argument"},
		{"/process.Process/SendInput", `{"process":{"tag":"x"},"input":{"stdin":"aGk="}}`, 404, "not_found"},
		{"/process.Process/SendInput", `{"process":{"tag":"x"},"input":{"stdin":"not base64!"}}`, 400, "invalid_argument"},
		{"/filesystem.Filesystem/Stat", `{"path":"/no/such"}`, 404, "not_found"},
		{"/filesystem.Filesystem/Stat", `{"path":"/etc\u0000"}`, 400, "invalid_argument"},
		{"/filesystem.Filesystem/ListDir", `{"path":"/","depth":-1}`, 400, "invalid_argument"},
		{"/filesystem.Filesystem/ListDir", `{"path":"/","depth":4294967296}`, 400, "invalid_argument"},
		{"/filesystem.Filesystem/Stat", `{"path":`, 400, "invalid_argument"},
	} {
		status, body := a.unary(t, c.path, c.message, root...)
		if status != c.status || !strings.HasPrefix(body, `{"code":"`+c.code+`","message":"`) {
			t.Errorf("%s %s: %d %s", c.path, c.message, status, body)
		}
	}
	status, body := a.unary(t, "/filesystem.Filesystem/Stat", `{"path":"`+strings.Repeat("x", 5<<20)+`"}`, root...)
	if status != 429 || !strings.Contains(body, `"code":"resource_exhausted"`) {
		t.Errorf("too large: %d %.200s", status, body)
	}
}

func TestRecordedFiles(t *testing.T) {
	a := start(t)
	root := []string{"Authorization", "Basic cm9vdDo="}
	body, kind := form(t, "a", "abc")
	status, _, answer := a.do(t, "POST", "/files?path=a&username=root", body, "Content-Type", kind)
	if want := fmt.Sprintf(`[{"path":"%s/root/a","name":"a","type":"file"}]`, a.root); status != 200 || answer != want {
		t.Errorf("%d %s", status, answer)
	}
	status, answer = a.unary(t, "/filesystem.Filesystem/Stat", `{"path":"a"}`, root...)
	answer = regexp.MustCompile(`"modifiedTime":"[^"]+Z"`).ReplaceAllString(answer, `"modifiedTime":"T"`)
	if want := fmt.Sprintf(`{"entry":{"name":"a","type":"FILE_TYPE_FILE","path":"%s/root/a","size":"3","mode":420,"permissions":"-rw-r--r--","owner":"root","group":"root","modifiedTime":"T"}}`, a.root); status != 200 || answer != want {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer = a.unary(t, "/filesystem.Filesystem/MakeDir", `{"path":"d"}`, root...); status != 200 {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer = a.unary(t, "/filesystem.Filesystem/MakeDir", `{"path":"d"}`, root...); status != 409 || !strings.Contains(answer, `"code":"already_exists"`) {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer = a.unary(t, "/filesystem.Filesystem/Remove", `{"path":"d"}`, root...); status != 200 || answer != "{}" {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer = a.unary(t, "/process.Process/List", `{}`); status != 200 || answer != "{}" {
		t.Errorf("%d %s", status, answer)
	}
}

func TestRecordedStreamInput(t *testing.T) {
	a := start(t)
	events, w := io.Pipe()
	go func() {
		defer w.Close()
		io.WriteString(w, envelope(`{"process":{"cmd":"cat"},"tag":"c"}`))
	}()
	req, err := http.NewRequestWithContext(t.Context(), "POST", a.url+"/process.Process/Start", events)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/connect+json")
	req.SetBasicAuth("root", "")
	res, err := a.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	sel := `{"tag":"c"}`
	got := a.stream(t, "/process.Process/StreamInput", `{"start":{"process":`+sel+`}}`)
	if strings.Join(got, ",") != "0 {},2 {}" {
		t.Errorf("%v", got)
	}
	status, _, body := a.do(t, "POST", "/process.Process/StreamInput",
		strings.NewReader(envelope(`{"start":{"process":`+sel+`}}`)+envelope(`{"keepalive":{}}`)+envelope(`{"data":{"input":{"stdin":"aGk="}}}`)), "Content-Type", "application/connect+json")
	if status != 200 || strings.Join(envelopes(t, body), ",") != "0 {},2 {}" {
		t.Errorf("%d %q", status, body)
	}
	if status, answer := a.unary(t, "/process.Process/CloseStdin", `{"process":`+sel+`}`); status != 200 || answer != "{}" {
		t.Errorf("%d %s", status, answer)
	}
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if out := envelopes(t, string(data)); len(out) != 4 || out[1] != `0 {"event":{"data":{"stdout":"aGk="}}}` {
		t.Errorf("%v", out)
	}
}

// Envelopes that lie: each is answered with an error, never with a panic or by allocating what they claim.
func TestBrokenEnvelopes(t *testing.T) {
	a := start(t)
	for name, body := range map[string]string{
		"empty": "", "half a prefix": "\x00\x00", "huge": "\x00\xff\xff\xff\xff{}", "short": "\x00\x00\x00\x00\x10{}", "compressed": "\x01\x00\x00\x00\x02{}",
		"end of stream": "\x02\x00\x00\x00\x02{}", "odd flags": "\xf0\x00\x00\x00\x02{}", "two": envelope(`{"process":{"cmd":"ls"}}`) + envelope(`{}`),
	} {
		for _, kind := range []string{"application/connect+json", "application/connect+proto", "application/grpc", "application/grpc-web+proto"} {
			status, h, answer := a.do(t, "POST", "/process.Process/Start", strings.NewReader(body), "Content-Type", kind, "Authorization", "Basic cm9vdDo=")
			if status >= 500 || !strings.Contains(answer, `"error":{"code":"`) && h.Get("Grpc-Status") == "" && !strings.Contains(answer, "grpc-status") && !strings.HasPrefix(kind, "application/grpc") {
				t.Errorf("%s %s: %d %q", kind, name, status, answer)
			}
		}
	}
	if list, err := a.client.Processes(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left over: %v %v", list, err)
	}
}

func TestKeepaliveOfProcess(t *testing.T) {
	t.Parallel() // it waits for time to pass
	a := start(t)
	status, _, body := a.do(t, "POST", "/process.Process/Start", strings.NewReader(envelope(`{"process":{"cmd":"sleep","args":["1.3"]},"stdin":false}`)),
		"Content-Type", "application/connect+json", "Authorization", "Basic cm9vdDo=", "Keepalive-Ping-Interval", "1")
	if got := envelopes(t, body); status != 200 || len(got) != 4 || got[1] != `0 {"event":{"keepalive":{}}}` {
		t.Errorf("%d %v", status, got)
	}
}
