package daemon

import (
	"path/filepath"

	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/secret"
	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

// volumesDir holds the files of volumes, in the data folder, unless the configuration names another place.
const volumesDir = "volumes"

// openVolumes opens the folder of volumes and the key of their tokens.
func (d *Daemon) openVolumes(store volume.Store, key *secret.Sealer, state string) (*olympus.Volumes, error) {
	signing, err := key.Derive("volume tokens")
	if err != nil {
		return nil, err
	}
	tokens, err := volume.NewTokens(signing)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(state, volumesDir)
	if d.cfg.VolumesDir != "" && !d.cfg.Ephemeral {
		dir = d.cfg.VolumesDir
	}
	files, err := volume.OpenLibrary(dir, d.cfg.Limits.MaxVolumeMB<<20)
	if err != nil {
		return nil, err
	}
	if err := files.Sweep(); err != nil {
		d.log.Warn("removed volumes leave files behind", "error", err)
	}
	return &olympus.Volumes{Store: store, Files: files, Tokens: tokens}, nil
}
