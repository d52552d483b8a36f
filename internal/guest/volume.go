package guest

import (
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/volume/wire"
)

// volume answers GET /volume?path=P: it mounts a volume there, unless that was done before, and makes the connection the one over which
// the volume's files are asked for. The one before, if there is one, is closed.
func (a *Agent) volume(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Query().Get("path")
	if !strings.EqualFold(r.Header.Get("Upgrade"), wire.Protocol) || r.ProtoMajor != 1 {
		fault.HTTP(w, tartarus.Errorf(tartarus.Invalid, "a volume needs HTTP/1.1 and Upgrade: %s", wire.Protocol))
		return
	}
	if err := a.mounts.Ensure(r.Context(), path); err != nil {
		a.log.Error("volume not mounted", "path", path, "error", err)
		fault.HTTP(w, err)
		return
	}
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", wire.Protocol)
	w.WriteHeader(http.StatusSwitchingProtocols)
	conn, _, err := http.NewResponseController(w).Hijack() // the host sends nothing before it is asked
	if err != nil {
		a.log.Warn("volume not connected", "path", path, "error", err)
		return
	}
	defer conn.Close()
	tcp, ok := conn.(*net.TCPConn)
	if !ok || tcp.SetDeadline(time.Time{}) != nil {
		a.log.Warn("volume not connected: the connection cannot be handed over", "path", path)
		return
	}
	file, err := tcp.File()
	if err == nil {
		defer file.Close()
		err = a.mounts.Connect(path, file)
	}
	if err != nil {
		a.log.Warn("volume not connected", "path", path, "error", err)
	}
}
