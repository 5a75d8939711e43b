"""Hearth: one PyTorch server for images, text and speech. The map, top floor first; imports only go down.

    cli.py            8   hearth serve | pull | models | predict | tune | jobs
    jobs.py           7   `hearth jobs`
    main.py           7   settings → catalogue → supervisor; the only place where things are wired
    web/              6   speaks HTTP: a route → read.py → answer.py → kitchen.py, and shadow.py afterwards; edge.py around all;
                          security.py → origins.py: who may; sketch.py: who would find no room, in a flood; intake.py: bodies ·
                          connection.py: headers · problems.py: codes → statuses · process.py: a frontend; what outlives it:
                          keeper.py forks it → heirs.py take over; line.py → journal.py, seen.py: what was asked
    pool/             5   base.py: the waist · client.py, directory.py, admission.py: the frontends' side · supervisor.py →
                          (house.py) → loading.py, switching.py, renewal.py → leaving.py; roster.py, traffic.py; keyring.py;
                          processes.py, frontends.py: the other
    tuning/           5   trainer.py: the loop → recipe.py, optimize.py, average.py, chance.py, pace.py, progress.py, device.py
                          (accelerate) · command.py: `hearth tune` · jobs: spec.py, store.py (database), foreman.py (who
                          runs when), gate.py, process.py (the tuner) → archive.py, image.py, text.py, speech.py, lora.py,
                          features.py · publish.py
    engine/           4   in a worker: worker.py → batcher.py → expected.py; runner.py → compute.py, lane.py; with torch:
                          eagerly.py → loader.py, modules.py, torch_lane.py, graphs.py; what computes: kept.py, search.py,
                          choosing.py, order.py, agreement.py; device.py; nursery.py forks it
    decoding/         3   files of strangers are read apart: client.py → link.py → (socket) → decoder.py → confine.py; nursery.py
                          forks it
    catalogue.py      3   models/*/card.toml → cards
    weights.py        3   shipped file, package, folder or download.py → files
    tasks/            2   per modality: codec.py (bytes ⇄ arrays), program.py and network.py (arrays ⇄ module), dataset.py
                          (files → samples); of jobs: folders.py, transcripts.py → table.py, findings.py
    wire/             1   messages.py, frames.py, stream.py, sockets.py, standby.py, blackbox.py
    card.py settings.py errors.py metrics.py logs.py listing.py process.py private.py keys.py rates.py audit.py patience.py    0

A picture's way: web/predict.py → web/answer.py → web/kitchen.py → tasks/image/codec.py → pool/client.py → (socket) →
engine/worker.py → engine/batcher.py → engine/runner.py → tasks/image/program.py, and back.
"""

__version__ = "0.1.0"
