package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus"
)

// versionDocument is what version prints as JSON.
type versionDocument struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Agent    string `json:"agent"` // what the guest agent reports to SDKs
}

func versionCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionDocument{Version: e.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Agent: tartarus.AgentVersion}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Revision = s.Value
					}
				}
			}
			if e.JSON {
				return e.printJSON(v)
			}
			_, err := fmt.Fprintf(e.Stdout, "tartarus %s (%s, %s, agent %s)\n", v.Version, v.Platform, v.Go, v.Agent)
			return err
		},
	}
}
