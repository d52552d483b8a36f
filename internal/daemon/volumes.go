package daemon

import (
	"path/filepath"

	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
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

// mountable gives the node agent the files of volumes.
type mountable struct{ files *volume.Library }

// Open implements hecatoncheir.Volumes.
func (m mountable) Open(id string) (hecatoncheir.VolumeFiles, func(), error) {
	tree, release, err := m.files.Open(id)
	if err != nil {
		return nil, nil, err
	}
	return tree, release, nil
}

// nodeVolumes is what sandboxes of this process can have mounted: of a control plane in the same process its own, on a node by itself
// what the folder that the fleet shares has.
func (d *Daemon) nodeVolumes(p *parts) (hecatoncheir.Volumes, error) {
	if p.volumes != nil {
		return mountable{p.volumes.Files}, nil
	}
	if d.cfg.VolumesDir == "" {
		return nil, nil
	}
	files, err := volume.OpenLibrary(d.cfg.VolumesDir, d.cfg.Limits.MaxVolumeMB<<20)
	if err != nil {
		return nil, err
	}
	p.onClose(closer(files))
	return mountable{files}, nil
}
