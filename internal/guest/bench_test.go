package guest_test

import (
	"io"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// BenchmarkExec runs echo through the agent over loopback and, in turns, directly: the difference is what the agent costs.
func BenchmarkExec(b *testing.B) {
	a := start(b)
	var through, direct []time.Duration
	for b.Loop() {
		began := time.Now()
		exit, err := a.client.Run(b.Context(), guestclient.Command{Argv: []string{"/bin/echo", "hi"}, User: "root"}, nil, io.Discard, io.Discard)
		if err != nil || exit.Code != 0 {
			b.Fatal(exit, err)
		}
		through = append(through, time.Since(began))
		began = time.Now()
		if _, err := exec.Command("/bin/echo", "hi").Output(); err != nil {
			b.Fatal(err)
		}
		direct = append(direct, time.Since(began))
	}
	slices.Sort(through)
	slices.Sort(direct)
	b.ReportMetric(through[len(through)/2].Seconds()*1e3, "agent-p50-ms")
	b.ReportMetric(through[len(through)*99/100].Seconds()*1e3, "agent-p99-ms")
	b.ReportMetric(direct[len(direct)/2].Seconds()*1e3, "direct-p50-ms")
}

// BenchmarkInit is what every new sandbox waits for.
func BenchmarkInit(b *testing.B) {
	a := start(b)
	in := guestclient.Init{
		EnvVars: map[string]string{"A": "B"}, Timestamp: time.Now(), SandboxID: "ibox", TemplateID: "tpl", Hostname: "ibox",
		MachineID: "0123456789abcdef0123456789abcdef", Entropy: "MDEyMzQ1Njc4OWFiY2RlZg==", DNSServers: []string{"10.0.0.1"},
	}
	ids := []string{"ione", "itwo"} // every other call changes everything
	for i := 0; b.Loop(); i++ {
		in.SandboxID, in.Hostname = ids[i%2], ids[i%2]
		if err := a.client.Init(b.Context(), in); err != nil {
			b.Fatal(err)
		}
	}
}
