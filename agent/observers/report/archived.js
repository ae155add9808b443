// The page as a file: all of the night stands in it.

const detailsOf = async () => details ?? unpack($("more").textContent);

function showState() {
  const { setup } = night, parts = [night.ended ? `Ended: ${night.ended}` : "Not ended yet",
    setup.proposer, setup.device, setup.sandbox && `sandbox: ${setup.sandbox}`];
  $("setup").replaceChildren(parts.filter(Boolean).join(" \u00b7 "));
}

unpack($("overview").textContent).then(show);
