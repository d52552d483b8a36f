package edge

import (
	"encoding/json"
	"html/template"
	"net/http"
	"strconv"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// refusal is an answer of the edge itself. SDKs tell refusals apart by their exact messages.
type refusal struct {
	status  int
	message string
	target  target
	port    bool // whether the body names the port
}

// The bodies of a refusal.
type (
	body struct {
		SandboxID string `json:"sandboxId"`
		Message   string `json:"message"`
		Code      int    `json:"code"`
	}
	portBody struct {
		SandboxID string `json:"sandboxId"`
		Message   string `json:"message"`
		Port      int    `json:"port"`
		Code      int    `json:"code"`
	}
)

// refusalOf chooses the refusal that says what is wrong. Everything a client cannot help is 502, because that is how SDKs see that a
// sandbox is not there.
func refusalOf(err error, t target) refusal {
	switch tartarus.KindOf(err) {
	case tartarus.GuestGone, tartarus.NotFound:
		return refusal{status: http.StatusBadGateway, message: "The sandbox was not found", target: t}
	case tartarus.PortClosed:
		return refusal{status: http.StatusBadGateway, message: "The sandbox is running but port is not open", target: t, port: true}
	case tartarus.Invalid:
		return refusal{status: http.StatusBadRequest, message: err.Error(), target: t}
	case tartarus.Denied: // why is for its owner to read, not for whoever comes by
		return refusal{status: http.StatusForbidden, message: "The sandbox is paused and may not be resumed", target: t}
	case tartarus.Exhausted:
		return refusal{status: http.StatusTooManyRequests, message: err.Error(), target: t}
	case tartarus.Unavailable:
		return refusal{status: http.StatusBadGateway, message: err.Error(), target: t}
	}
	return refusal{status: http.StatusBadGateway, message: "The sandbox did not answer", target: t}
}

// page is for people who open a sandbox's address in a browser.
var page = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{.Status}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0 1em}code{background:#8882;padding:.1em .3em}</style></head>
<body><h1>{{.Message}}</h1><p>Sandbox <code>{{.ID}}</code>{{if .Port}}, port <code>{{.Port}}</code>{{end}}</p></body></html>
`))

// refuse sends a refusal: a page to browsers, JSON to everybody else.
func refuse(w http.ResponseWriter, r *http.Request, f refusal) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if f.status == http.StatusTooManyRequests {
		h.Set("Retry-After", "1")
	}
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		w.WriteHeader(f.status)
		_ = page.Execute(w, map[string]any{"Status": f.status, "Message": f.message, "ID": f.target.id, "Port": f.target.port})
		return
	}
	var v any = body{f.target.id, f.message, f.status}
	if f.port {
		v = portBody{f.target.id, f.message, f.target.port, f.status}
	}
	raw, _ := json.Marshal(v) // strings and numbers only
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(f.status)
	_, _ = w.Write(raw)
}
