"""A running sandbox and its clients. Credentials are made once for the whole run: RSA keys take their time."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pyreqwest.client import Client

from bellbuoy.clock import ManualClock
from bellbuoy.sandbox import Sandbox, SandboxSettings
from bellbuoy.sandbox.certificates import Credentials

from .clients import ApnsClient, Control, FcmClient, http_client


@pytest.fixture(scope="session")
def credentials_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("credentials")
    Credentials(folder, "127.0.0.1")
    return folder


@pytest.fixture
def data_dir(tmp_path: Path, credentials_folder: Path) -> Path:
    shutil.copytree(credentials_folder, tmp_path / "sandbox")
    return tmp_path


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def sandbox(data_dir: Path, clock: ManualClock) -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(SandboxSettings(data_dir=data_dir), clock=clock, rng=random.Random(1))
    await sandbox.start()
    yield sandbox
    await sandbox.aclose()


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[Client]:
    async with http_client(sandbox, http2=True) as client:
        yield client


@pytest.fixture
async def control(sandbox: Sandbox, client: Client) -> Control:
    return Control(sandbox, client)


@pytest.fixture
async def fcm(sandbox: Sandbox, client: Client, clock: ManualClock) -> FcmClient:
    fcm = FcmClient(sandbox, client, clock)
    await fcm.login()
    return fcm


@pytest.fixture
async def apns(sandbox: Sandbox, client: Client, clock: ManualClock) -> ApnsClient:
    return ApnsClient(sandbox, client, clock)
